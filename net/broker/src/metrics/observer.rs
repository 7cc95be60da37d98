//! Asking the cores: from the one thread that serves HTTP to each core, and back.
//!
//! Owns the rings, and how long a core is waited for. One question is open at each core at a time, so the rings never fill
//! up; a core that has not answered in time is *silent*, is not asked again until it has, and holds nobody up from then on.
//! What it told last stays known.

use std::time::Duration;

use heddle_io::ring::{self, RingReceiver, RingSender};
use tokio::time::{Instant, timeout_at};

use super::sample::{CoreSample, Pulse};

/// Letters that a ring holds. One question is open at a time.
const CAPACITY: usize = 2;

/// What a core is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Whether it answers.
    Pulse,
    /// For all of its numbers.
    Everything,
}

/// What it answers.
pub(super) enum Answer {
    Pulse(Pulse),
    Everything(Box<CoreSample>),
}

/// A core's end.
pub(crate) struct Observed {
    pub(super) questions: RingReceiver<Question>,
    pub(super) answers: RingSender<Answer>,
}

/// The other end of all cores.
pub(crate) struct Observer {
    cores: Vec<Watched>,
}

/// What is known of one core.
struct Watched {
    questions: RingSender<Question>,
    answers: RingReceiver<Answer>,
    /// The question that is open, and since when.
    open: Option<(Question, Instant)>,
    pulse: Option<Pulse>,
    sample: Option<Box<CoreSample>>,
    is_gone: bool,
}

/// How a core answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// In time.
    Here,
    /// Not for so long.
    Silent(Duration),
    /// It has ended.
    Gone,
}

/// Ends for each of `cores` cores, in order, and the end that asks them.
pub(crate) fn observe(cores: usize) -> (Vec<Observed>, Observer) {
    let ends = (0..cores).map(|_| {
        let (questions, asked) = ring::channel(CAPACITY);
        let (answers, answered) = ring::channel(CAPACITY);
        let watched = Watched { questions, answers: answered, open: None, pulse: None, sample: None, is_gone: false };
        (Observed { questions: asked, answers }, watched)
    });
    let (observed, cores) = ends.unzip();
    (observed, Observer { cores })
}

impl Observer {
    /// Asks every core, and waits at most `patience` for all answers together. How each answered, in order.
    pub(super) async fn ask(&mut self, question: Question, patience: Duration) -> Vec<Presence> {
        let deadline = Instant::now() + patience;
        for core in &mut self.cores {
            core.take_answers();
            core.post(question);
        }
        let mut presences = Vec::with_capacity(self.cores.len());
        for core in &mut self.cores {
            presences.push(core.answer(question, patience, deadline).await);
        }
        presences
    }

    /// What each core told last when it was asked for everything, in order.
    pub(super) fn samples(&self) -> impl Iterator<Item = Option<&CoreSample>> {
        self.cores.iter().map(|core| core.sample.as_deref())
    }

    /// What the first core said last.
    pub(super) fn pulse(&self) -> Option<&Pulse> {
        self.cores.first().and_then(|first| first.pulse.as_ref())
    }
}

impl Watched {
    /// Asks, unless a question is open.
    fn post(&mut self, question: Question) {
        if self.open.is_none() && !self.is_gone {
            match self.questions.try_send(question) {
                Ok(()) => self.open = Some((question, Instant::now())),
                Err(_) => self.is_gone = true,
            }
            self.questions.flush_wakeups();
        }
    }

    /// Waits for the answer to `question`, or to what was asked before it and then to it.
    async fn answer(&mut self, question: Question, patience: Duration, deadline: Instant) -> Presence {
        while let Some((open, since)) = self.open {
            // Who was silent before is not waited for again.
            let deadline = deadline.min(since + patience);
            match timeout_at(deadline, self.answers.recv()).await {
                Ok(Some(answer)) => {
                    self.take(answer);
                    if open != question {
                        self.post(question);
                    }
                }
                Ok(None) => {
                    self.is_gone = true;
                    self.open = None;
                }
                Err(_) => return Presence::Silent(since.elapsed()),
            }
        }
        if self.is_gone { Presence::Gone } else { Presence::Here }
    }

    fn take_answers(&mut self) {
        while let Some(answer) = self.answers.try_recv() {
            self.take(answer);
        }
    }

    fn take(&mut self, answer: Answer) {
        self.open = None;
        match answer {
            Answer::Pulse(pulse) => self.pulse = Some(pulse),
            Answer::Everything(sample) => {
                self.pulse = Some(sample.pulse.clone());
                self.sample = Some(sample);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concurrently::{Either, either};
    use crate::metrics::Stage;

    /// More than a test waits for.
    const LONG: Duration = Duration::from_secs(60);

    fn pulse() -> Answer {
        Answer::Pulse(Pulse { stage: Stage::Serving, offline: None })
    }

    fn run<T>(story: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(story)
    }

    /// A core that answers whatever it is asked.
    async fn answers(core: &mut Observed) {
        while core.questions.recv().await.is_some() {
            assert!(core.answers.try_send(pulse()).is_ok(), "there is room for the answer to an open question");
            core.answers.flush_wakeups();
        }
    }

    /// Asks while these cores answer.
    async fn ask<const N: usize>(
        observer: &mut Observer,
        cores: [&mut Observed; N],
        patience: Duration,
    ) -> Vec<Presence> {
        let answering = crate::concurrently::all(cores.into_iter().map(answers));
        match either(observer.ask(Question::Pulse, patience), answering).await {
            Either::First(presences) => presences,
            Either::Second(_) => panic!("the cores answer for as long as they are asked"),
        }
    }

    #[test]
    fn a_silent_core_is_waited_for_once_and_asked_once() {
        let (mut cores, mut observer) = observe(2);
        let [first, second] = &mut cores[..] else { panic!("two cores") };
        run(async {
            let presences = ask(&mut observer, [first], Duration::from_millis(1)).await;
            assert!(matches!(presences[..], [Presence::Here, Presence::Silent(_)]), "{presences:?}");
            assert_eq!(observer.pulse().map(|pulse| pulse.stage), Some(Stage::Serving));

            // Its time is over: with any patience that has passed since, nobody waits again.
            let presences = ask(&mut observer, [first], Duration::from_millis(1)).await;
            assert!(matches!(presences[..], [Presence::Here, Presence::Silent(_)]), "{presences:?}");
            assert_eq!(second.questions.try_recv(), Some(Question::Pulse));
            assert_eq!(second.questions.try_recv(), None, "what is not answered is not asked again");

            assert!(second.answers.try_send(pulse()).is_ok());
            assert_eq!(ask(&mut observer, [first, second], LONG).await, [Presence::Here; 2], "it is back");
        });
    }

    #[test]
    fn a_late_answer_to_another_question_is_not_taken_for_this_one() {
        let (mut cores, mut observer) = observe(1);
        run(async {
            let presences = observer.ask(Question::Everything, Duration::ZERO).await;
            assert!(matches!(presences[..], [Presence::Silent(_)]), "{presences:?}");
            assert_eq!(ask(&mut observer, [&mut cores[0]], LONG).await, [Presence::Here]);
        });
        assert!(observer.samples().all(|sample| sample.is_none()), "only pulses were answered");
    }

    #[test]
    fn a_core_that_has_ended_is_gone() {
        let (cores, mut observer) = observe(1);
        drop(cores);
        run(async {
            assert_eq!(observer.ask(Question::Pulse, LONG).await, [Presence::Gone]);
            assert_eq!(observer.ask(Question::Pulse, LONG).await, [Presence::Gone]);
        });
    }
}
