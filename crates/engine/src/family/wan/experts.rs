//! Two transformers that share the steps of a run: the first computes those of high noise, the second the others. One
//! at a time is in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use navicache_models::wan::Transformer;
use navicache_models::{Anatomy, Branches, Conditioned, ForwardPass};
use navicache_weights::Role;

use crate::Result;

/// The transformer in memory, and which of them it is. One that is asked for takes the other's place.
pub(super) struct InMemory<T>(Mutex<Option<(Role, Arc<T>)>>);

impl<T> Default for InMemory<T> {
    fn default() -> Self {
        InMemory(Mutex::new(None))
    }
}

impl<T> InMemory<T> {
    pub fn get(&self, role: Role, read: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut here = self.lock();
        if let Some((_, transformer)) = here.as_ref().filter(|(of, _)| *of == role) {
            return Ok(transformer.clone());
        }
        *here = None; // the other gives its memory back first
        let transformer = Arc::new(read()?);
        *here = Some((role, transformer.clone()));
        Ok(transformer)
    }

    pub fn free(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Role, Arc<T>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a transformer and puts it under the conditions of a generation's branches.
type Read<'a> = dyn Fn(Role) -> Result<Conditioned<Transformer>> + Send + Sync + 'a;

/// Both transformers under the conditions of a generation's branches.
pub(super) struct Experts<'a> {
    read: Box<Read<'a>>,
    /// The timestep from which on the first computes.
    boundary: f64,
    /// What both have alike.
    anatomy: Anatomy,
    /// The one that computed last, with what it made of the conditions.
    now: Mutex<Option<(Role, Arc<Conditioned<Transformer>>)>>,
}

impl<'a> Experts<'a> {
    /// Reads the first, as most runs begin with it.
    pub fn new(read: Box<Read<'a>>, boundary: f64) -> Result<Self> {
        let first = Arc::new(read(Role::Transformer)?);
        Ok(Experts {
            read,
            boundary,
            anatomy: first.anatomy().clone(),
            now: Mutex::new(Some((Role::Transformer, first))),
        })
    }

    /// The transformer of a timestep.
    fn at(&self, timestep: f64) -> navicache_models::Result<Arc<Conditioned<Transformer>>> {
        let role = if timestep >= self.boundary { Role::Transformer } else { Role::SecondTransformer };
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, conditioned)) = now.as_ref().filter(|(of, _)| *of == role) {
            return Ok(conditioned.clone());
        }
        *now = None; // so that nothing holds the other
        let conditioned = Arc::new((self.read)(role).map_err(as_model_error)?);
        *now = Some((role, conditioned.clone()));
        Ok(conditioned)
    }
}

/// A forward fails as models do.
fn as_model_error(error: crate::Error) -> navicache_models::Error {
    match error {
        crate::Error::Model(error) => error,
        error => navicache_models::Error::Input {
            what: "the other transformer",
            expected: "its weights".to_string(),
            found: error.to_string(),
        },
    }
}

impl Branches for Experts<'_> {
    fn anatomy(&self) -> &Anatomy {
        &self.anatomy
    }

    fn begin(
        &self,
        branch: usize,
        latents: &Tensor,
        timestep: f64,
        stay: Option<&[Tensor; 3]>,
    ) -> navicache_models::Result<Box<dyn ForwardPass>> {
        self.at(timestep)?.begin(branch, latents, timestep, stay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_is_in_memory() {
        let memory = InMemory::default();
        let first = Arc::downgrade(&memory.get(Role::Transformer, || Ok("first")).unwrap());
        assert!(memory.get(Role::Transformer, || panic!("it is here")).is_ok());
        let second = memory.get(Role::SecondTransformer, || {
            assert!(first.upgrade().is_none(), "the first is given back before the second is read");
            Ok("second")
        });
        assert_eq!(*second.unwrap(), "second");
        memory.free();
        assert_eq!(*memory.get(Role::Transformer, || Ok("again")).unwrap(), "again");
    }
}
