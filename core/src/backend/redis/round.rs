//! One request at several servers, and the answers as they come.
//!
//! Each server gets a ticket, and whoever reads its answer (in the usual case the driver of a connection that is
//! open) puts it into the round and wakes the caller. So asking costs no task and no thread but the caller's, and answers
//! that come when the caller has decided are looked at where they are read. What takes more than that (opening a
//! connection, asking again, finding the right server) is a future of the caller's, until he has decided.

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use futures_util::future::{BoxFuture, FutureExt, join_all};

use super::{
    attempt,
    call::{CallError, Reply},
    node::Node,
    request::{self, Answer, Answered, Errand, Request, Server},
};
use crate::{
    Error,
    clock::Instant,
    engine::{driver::Driver, process, runtime},
    metrics::Sample,
};

/// What answers that come late are for.
type Late = Arc<dyn Fn(usize, Answer) + Send + Sync>;

pub(super) struct Round {
    request: Arc<Request>,
    driver: Driver,
    state: Mutex<State>,
}

struct State {
    answers: Arrived,
    waker: Option<Waker>,
    phase: Phase,
}

/// Answers that nobody has looked at, in the order in which they came. The first is often the only one.
#[derive(Default)]
struct Arrived {
    first: Option<(usize, Answer)>,
    others: VecDeque<(usize, Answer)>,
}

impl Arrived {
    fn push(&mut self, answer: (usize, Answer)) {
        if self.first.is_none() && self.others.is_empty() {
            self.first = Some(answer);
        } else {
            self.others.push_back(answer);
        }
    }

    fn pop(&mut self) -> Option<(usize, Answer)> {
        self.first.take().or_else(|| self.others.pop_front())
    }
}

enum Phase {
    /// Somebody waits for the answers.
    Open,
    /// It was decided without those that are missing.
    Decided(Late),
    /// Nobody waits for it any more.
    Closed,
}

/// The caller's end of a round. Dropping it while answers are missing gives up an attempt, if it is one; what is on its way
/// is waited for in the background, and nothing else is sent.
pub(super) struct Answers {
    round: Arc<Round>,
    /// How many are missing.
    missing: usize,
    /// What is yet to be done for some of them, and the process whose connections it is done on.
    work: Vec<BoxFuture<'static, ()>>,
    generation: u32,
}

/// One server's part of a round. It is answered exactly once: dropping it is an answer as well.
pub(super) struct Ticket {
    round: Arc<Round>,
    index: usize,
    answered: bool,
    /// On whose connection it was sent, to be counted there.
    through: Option<(Arc<Node>, Sample)>,
}

impl Answers {
    /// Sends `request` to the servers `to`.
    pub(super) fn ask<'a>(
        to: impl Iterator<Item = (usize, &'a Arc<dyn Server>)>,
        request: &Arc<Request>,
        driver: &Driver,
    ) -> Self {
        let mut answers = Self::none(request, driver);
        for (index, server) in to {
            let ticket = answers.ticket(index);
            answers.work.extend(Arc::clone(server).send(ticket));
        }
        if !answers.work.is_empty() {
            answers.generation = process::generation();
        }
        answers
    }

    /// Those of a request that nobody was sent yet.
    pub(super) fn none(request: &Arc<Request>, driver: &Driver) -> Self {
        let state = Mutex::new(State { answers: Arrived::default(), waker: None, phase: Phase::Open });
        let round = Arc::new(Round { request: Arc::clone(request), driver: driver.clone(), state });
        Self { round, missing: 0, work: Vec::new(), generation: 0 }
    }

    pub(super) fn ticket(&mut self, index: usize) -> Ticket {
        self.missing += 1;
        Ticket { round: Arc::clone(&self.round), index, answered: false, through: None }
    }

    /// The next answer. There is one for each server that was asked; asking for more waits for ever.
    pub(super) async fn next(&mut self) -> (usize, Answer) {
        poll_fn(|context| {
            self.work.retain_mut(|work| work.poll_unpin(context).is_pending());
            let mut state = self.round.state();
            if let Some(answer) = state.answers.pop() {
                self.missing -= 1;
                return Poll::Ready(answer);
            }
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    /// Has the answers that are missing handed to `late`, wherever they are read.
    pub(super) fn leave(mut self, late: impl Fn(usize, Answer) + Send + Sync + 'static) {
        self.missing = 0;
        self.round.leave_to(Phase::Decided(Arc::new(late)));
        let work = mem::take(&mut self.work);
        if !work.is_empty() {
            runtime::spawn(join_all(work).map(drop));
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.missing == 0 {
            return;
        }
        let attempt = self.round.request.attempt();
        if let Some(progress) = attempt {
            // Before the answers are left: what comes of an attempt that is over is noted as it comes.
            progress.give_up();
        }
        self.round.leave_to(Phase::Closed);
        let work = mem::take(&mut self.work);
        let awaited = !work.is_empty() && attempt.is_some_and(|progress| !progress.is_unsent());
        if awaited && self.generation == process::generation() {
            // What is sent to other servers meanwhile says that it is too late.
            runtime::spawn(join_all(work).map(drop));
        }
    }
}

impl Round {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits any more: the answers that are here go where those that come will go.
    fn leave_to(&self, phase: Phase) {
        let (mut answers, _waker) = {
            let mut state = self.state();
            state.phase = phase;
            (mem::take(&mut state.answers), state.waker.take())
        };
        while let Some((index, answer)) = answers.pop() {
            self.answer(index, answer);
        }
    }

    fn answer(&self, index: usize, answer: Answer) {
        // It may be that nobody looks at it any more. An attempt that is known to have come to its end need not be undone for
        // as long as it might come.
        if let Some(progress) = self.request.attempt()
            && progress.is_over()
        {
            attempt::note(progress, index, &answer, false);
        }
        let mut state = self.state();
        match &state.phase {
            Phase::Open => {
                state.answers.push((index, answer));
                let waker = state.waker.take();
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Phase::Decided(late) => {
                let late = Arc::clone(late);
                drop(state);
                late(index, answer);
            }
            Phase::Closed => {}
        }
    }
}

impl Ticket {
    /// What is asked.
    pub(super) fn errand(&self) -> Errand {
        self.round.request.to(self.index)
    }

    /// Who drives the connection that it is to be asked on.
    pub(super) fn driver(&self) -> &Driver {
        &self.round.driver
    }

    /// It is sent on a connection of `node`.
    pub(super) fn is_through(&mut self, node: &Arc<Node>, sample: Sample) {
        self.through = Some((Arc::clone(node), sample));
    }

    /// Whether nobody wants the answer any more.
    fn is_void(&self) -> bool {
        matches!(self.round.state().phase, Phase::Closed)
    }

    /// Hands in the answer.
    pub(super) fn answer(mut self, answer: Answer) {
        if let Some((node, sample)) = self.through.take() {
            request::count(node.stats(), sample, &answer);
        }
        self.hand_in(answer);
    }

    fn hand_in(&mut self, answer: Answer) {
        if !mem::replace(&mut self.answered, true) {
            self.round.answer(self.index, answer);
        }
    }

    /// Hands in what came of it on a connection. What another try may mend goes on in the background.
    pub(super) fn reply(self, reply: Reply) {
        match (reply, &self.through) {
            (
                Err(so_far @ (CallError::NoScript | CallError::NotTogether | CallError::Unanswered(_))),
                Some((node, _)),
            ) if Instant::now() < self.round.request.expires && !self.is_void() => {
                runtime::spawn(Arc::clone(node).finish(self, Some(so_far)));
            }
            (reply, _) => self.answer(reply.map(|value| Answered { value, repeated: false })),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            // The caller went away, or the engine has stopped. Whether it was sent before, the claim's progress knows.
            self.hand_in(Err(CallError::Unanswered(Error::unavailable("the engine has stopped"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;
    use crate::{
        Resource,
        backend::redis::{keys::Keys, request::tests::claim},
    };

    fn round() -> (Answers, [Ticket; 3]) {
        let request = Request::inspect("", &Resource::new("r").unwrap(), Instant::now());
        let mut answers = Answers::none(&request, &Driver::engine());
        let tickets = [0, 1, 2].map(|index| answers.ticket(index));
        (answers, tickets)
    }

    fn yes() -> Answer {
        Ok(Answered { value: Value::Int(1), repeated: false })
    }

    #[tokio::test]
    async fn each_ticket_is_answered_once_wherever_it_ends() {
        let (mut answers, [first, second, third]) = round();
        let late: Arc<Mutex<Vec<_>>> = Arc::default();
        let heard = |late: &Mutex<Vec<_>>| late.lock().unwrap().clone();
        first.answer(yes());
        assert!(matches!(answers.next().await, (0, Ok(_))));
        // It is in before the decision, and looked at after it.
        drop(second);
        answers.leave({
            let late = Arc::clone(&late);
            move |index, answer: Answer| {
                late.lock().unwrap().push((index, answer.is_err_and(|error| error.is_ambiguous())))
            }
        });
        assert_eq!(heard(&late), [(1, true)]);
        assert!(!third.is_void());
        third.answer(yes());
        assert_eq!(heard(&late), [(1, true), (2, false)]);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_and_whoever_left_is_not_asked_for() {
        let (mut answers, [first, second, third]) = round();
        let asked = tokio::spawn(async move {
            let (index, _) = answers.next().await;
            (index, answers)
        });
        tokio::task::yield_now().await;
        first.answer(yes());
        let (index, answers) = asked.await.unwrap();
        second.answer(yes());
        drop(answers);
        assert!(index == 0 && third.is_void());
        // Nobody is asked again for it, though there is time.
        third.reply(Err(CallError::NoScript));
    }

    #[tokio::test]
    async fn what_comes_of_an_attempt_that_is_over_is_noted_whether_anybody_looks_at_it() {
        let claim = claim();
        let progress = &claim.progress;
        let busy = || Ok(Answered { value: Value::Array(vec![Value::Int(0), Value::Int(1)]), repeated: false });
        let doubts = || [0, 1, 2, 3].map(|index| progress.is_in_doubt(index));
        let request = Request::acquire(&Keys::of("", &claim.resources), &claim, None, Instant::now());
        let mut answers = Answers::none(&request, &Driver::engine());
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|index| {
            progress.doubt(index);
            assert!(progress.sends(index));
            answers.ticket(index)
        });
        first.answer(busy());
        assert_eq!(doubts(), [true; 4]);
        // Closing ends it, whose caller may not go on.
        progress.give_up();
        second.answer(busy());
        assert_eq!(doubts(), [true, false, true, true]);
        drop(answers);
        assert_eq!(doubts(), [false, false, true, true]);
        third.reply(Err(CallError::NoScript));
        // It was granted, so it has to be given back.
        fourth.answer(yes());
        assert_eq!(doubts(), [false, false, false, true]);
    }

    #[tokio::test]
    async fn an_attempt_is_over_when_its_caller_leaves_before_the_answers() {
        for leaves in [false, true] {
            let claim = claim();
            let request = Request::acquire(&Keys::of("", &claim.resources), &claim, None, Instant::now());
            let mut answers = Answers::none(&request, &Driver::engine());
            let ticket = answers.ticket(0);
            if !leaves {
                ticket.answer(yes());
                assert!(matches!(answers.next().await, (0, Ok(_))));
            }
            drop(answers);
            assert_eq!(claim.progress.is_over(), leaves);
        }
    }
}
