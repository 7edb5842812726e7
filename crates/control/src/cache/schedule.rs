//! A forced schedule: what ran in another generation runs again, whatever is measured.
//!
//! For comparisons (the same steps, another way of approximating values), for schedules found by hand or by search, and
//! for a run that must not vary. The report of a generation has everything it takes: the model's family, and the strip.

use super::approx::FOR_STEPS;
use super::{About, Approx, Asks, At, Decision, Guard, Measurements, Method, Policy, Question, Reuse, Run, Scope};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "schedule",
    line: "a strip from a file: schedule:FILE, where FILE is a report or has the fields strip and family",
    paper: "-",
    source: "-",
    needs: Some("a file"),
};

options! {
    /// What runs: a character a branch, `S` computes and `.` reuses; a bar after each step.
    strip: String,
    /// The family of models that the strip was made for; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    family: Option<String>,
    /// How a reused prediction is approximated.
    #[serde(default)]
    reuse: Reuse,
}

impl Config {
    fn steps(&self) -> Result<Vec<Vec<bool>>, String> {
        let step = |text: &str| -> Result<Vec<bool>, String> {
            let branch = |c| match c {
                'S' => Ok(true),
                '.' => Ok(false),
                'm' => Err("the strip has steps of which parts ran; only whole branches can be forced".to_string()),
                other => Err(format!("the strip has {other:?}, expected S, . and |")),
            };
            text.chars().map(branch).collect()
        };
        self.strip.trim().trim_end_matches('|').split('|').map(step).collect()
    }
}

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard::NONE
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        // A checked configuration has its steps; one that was not computes everything.
        Box::new(Schedule {
            reuse: self.reuse,
            computes: self.steps().unwrap_or_default(),
            branches: run.branches.clone(),
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.steps()?[0].contains(&false) {
            return Err("the strip reuses in its first step, where nothing was computed".to_string());
        }
        let is_mixed = |step: &Vec<bool>| step.contains(&true) && step.contains(&false);
        if self.reuse.is_left_to_the_solver() && self.steps()?.iter().any(is_mixed) {
            return Err("a step of which one branch runs cannot be left to the solver: the strip must be the same for all branches"
                .to_string());
        }
        match self.reuse {
            Reuse::FromCond => Err("reuse=from_cond: the strip says which branches run".to_string()),
            reuse => reuse.check(FOR_STEPS),
        }
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        if let Some(family) = self.family.as_ref().filter(|family| **family != run.family) {
            return Err(format!("the schedule was made for {family}, the model is {}", run.family));
        }
        let steps = self.steps()?;
        if steps.len() != run.steps.len() {
            return Err(format!("the schedule has {} steps, the run {}", steps.len(), run.steps.len()));
        }
        let branches = run.branches.len();
        match steps.iter().position(|step| step.len() != branches) {
            Some(i) => Err(format!("step {i} of the schedule has {} branches, the run {branches}", steps[i].len())),
            None => Ok(()),
        }
    }
}

struct Schedule {
    reuse: Reuse,
    computes: Vec<Vec<bool>>,
    branches: Vec<crate::guidance::Branch>,
}

impl Policy for Schedule {
    fn asks(&self) -> Asks {
        let question = Question { to_reuse: vec![self.reuse.into()], ..Question::default() };
        match self.reuse.is_left_to_the_solver() {
            true => Asks { step: Some(question), ..Asks::default() },
            false => Asks { branch: Some(question), ..Asks::default() },
        }
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        let Some(branches) = self.computes.get(at.step) else { return Decision::Compute };
        let computes = match at.scope {
            Scope::Step => branches.contains(&true),
            Scope::Branch(branch) => {
                let position = self.branches.iter().position(|&b| b == branch);
                position.and_then(|p| branches.get(p).copied()).unwrap_or(true)
            }
            Scope::Span { .. } => true,
        };
        if computes { Decision::Compute } else { Decision::Reuse(Approx::from(self.reuse)) }
    }
}
