//! Which connection has to leave when there are as many as may be: the one that was waited for the longest, of those
//! that have not sent a request; then of those whose body is still coming. One that is answered stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

/// What the server waits for. The first leaves first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum For {
    Request,
    Body,
}

/// The connections that the server waits for, in the order in which they have to leave.
#[derive(Default)]
pub struct Seats(Arc<Mutex<Line>>);

#[derive(Default)]
struct Line {
    waited_for: BTreeMap<(For, u64), Arc<Seat>>,
    /// The next number: they rise with time.
    next: u64,
}

/// A connection's seat.
pub struct Seat {
    line: Arc<Mutex<Line>>,
    /// Where it is in the line.
    place: Mutex<Option<(For, u64)>>,
    given_up: Notify,
}

impl Seats {
    /// For a connection that has said nothing yet.
    pub fn take(&self) -> Taken {
        let seat = Arc::new(Seat { line: self.0.clone(), place: Mutex::default(), given_up: Notify::new() });
        seat.wait(For::Request);
        Taken(seat)
    }

    /// Gives up the connection that has to leave first; says whether there is one.
    pub fn give_up_one(&self) -> bool {
        let first = lock(&self.0).waited_for.pop_first();
        first.inspect(|(_, seat)| seat.given_up.notify_one()).is_some()
    }
}

/// A seat until its connection is gone.
pub struct Taken(pub Arc<Seat>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Seat {
    /// Waits until the connection has to leave.
    pub async fn is_given_up(&self) {
        self.given_up.notified().await;
    }

    /// A request has come; when its answer is sent, the server waits for the next.
    pub fn at_work(self: &Arc<Self>) -> AtWork {
        self.leave();
        AtWork(self.clone())
    }

    /// The body of a request is read.
    pub fn reads_body(self: &Arc<Self>) -> ReadsBody {
        self.wait(For::Body);
        ReadsBody(self.clone())
    }

    fn wait(self: &Arc<Self>, what: For) {
        self.leave();
        let mut line = lock(&self.line);
        let place = (what, line.next);
        line.next += 1;
        line.waited_for.insert(place, self.clone());
        drop(line);
        *lock(&self.place) = Some(place);
    }

    fn leave(&self) {
        let place = lock(&self.place).take();
        if let Some(place) = place {
            lock(&self.line).waited_for.remove(&place);
        }
    }
}

/// While this lives, a request is answered.
pub struct AtWork(Arc<Seat>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.wait(For::Request);
    }
}

/// While this lives, a body is read.
pub struct ReadsBody(Arc<Seat>);

impl Drop for ReadsBody {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn who_is_waited_for_the_longest_leaves_and_who_is_answered_stays() {
        let seats = Seats::default();
        let taken: Vec<Taken> = (0..5).map(|_| seats.take()).collect();
        let seat = |index: usize| &taken[index].0;
        let has_left = |index: usize| seat(index).is_given_up().now_or_never().is_some();
        let answered = seat(0).at_work();
        let (uploads, body) = (seat(1).at_work(), seat(1).reads_body());
        drop(seat(2).at_work()); // its answer is sent: it is waited for again, from now on
        let mut order = Vec::new();
        while seats.give_up_one() {
            order.extend((0..taken.len()).filter(|index| has_left(*index)));
        }
        assert_eq!(order, [3, 4, 2, 1]);
        drop((answered, body, uploads));
        assert!(seats.give_up_one(), "after its answer it is one of those that are waited for");
        drop(taken);
        assert!(!seats.give_up_one(), "who is gone leaves no seat behind");
    }
}
