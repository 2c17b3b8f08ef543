//! Producers over HTTP: each request is posted until its answer comes, by the real way from bytes to log. Answers get lost like anything.
//!
//! Most requests have an `Idempotency-Key`: however often they are posted, each report in them makes its deliveries once. One without makes them again
//! whenever it is posted again, which is what its producer has asked for.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidings::core::access::Role;
use tidings::core::route::{Action, PipelineRoutes, Reporter, Routes};
use tidings::core::topic::TopicTemplate;
use tidings::core::types::{ConnectionName, Qos};
use tidings::ingest::accept::{AcceptError, Answer, Post};
use tidings::ingest::batch::Shape;
use tidings::log::committer::{CommitError, Committed};
use tidings::server::caller::Caller;
use tidings::server::idempotency::IdempotencyKey;

use crate::lane::look;
use crate::process::Posted;
use crate::trace::{say, violated};
use crate::world::{What, World};

pub struct Request {
    body: Bytes,
    shape: Shape,
    key: Option<IdempotencyKey>,
    /// The numbers of its reports.
    numbers: Vec<u64>,
    attempt: u32,
    is_answered: bool,
    first: Option<Answer>,
}

pub fn connection_name(number: usize) -> ConnectionName {
    ConnectionName::from(["mqtt", "other"][number])
}

/// A pipeline for each QoS and one that changes its mind; `success` goes to one connection, `start` to the other, `failure` to all.
pub fn routes(connections: usize) -> Routes {
    let reporter = |connection: usize, qos: Qos| Reporter {
        connection: connection_name(connection % connections),
        template: TopicTemplate::parse("ci/{project}").expect("a template"),
        qos,
        retain: false,
        include_returned_data: true,
    };
    let entries = Qos::ALL.into_iter().map(|qos| PipelineRoutes {
        pipeline: format!("q{}", qos.level()),
        tenant: None,
        reporters: BTreeMap::from([
            (Action::Success, vec![reporter(0, qos)]),
            (Action::Start, vec![reporter(1, qos)]),
            (Action::Failure, (0..connections).map(|connection| reporter(connection, qos)).collect()),
        ]),
    });
    Routes::new(entries.collect())
}

impl World {
    /// Makes a request, which is posted at some time.
    pub fn make_request(&mut self, at: u64) {
        let is_batch = self.chance.percent(25);
        let reports = if is_batch { self.chance.within(1, 5) } else { 1 };
        let (mut numbers, mut lines) = (Vec::new(), Vec::new());
        for _ in 0..reports {
            self.last_report += 1;
            let number = self.last_report;
            let project = self.chance.below(self.story.topics);
            // Mostly one QoS a topic, as in life; sometimes it changes.
            let qos = if self.chance.percent(12) { self.chance.below(3) } else { (project + 2) % 3 };
            let action = self.chance.pick(&["success", "success", "start", "failure"]);
            // Now and then one that fills a page.
            let filler = if self.chance.percent(4) { "x".repeat(3_000) } else { String::new() };
            lines.push(format!(
                "{{\"action\":\"{action}\",\"tenant\":\"t\",\"pipeline\":\"q{qos}\",\"project\":\"p{project}\",\"message\":\"{number}\",\"owner\":\"{filler}\"}}"
            ));
            numbers.push(number);
        }
        let key = self.chance.percent(85).then(|| IdempotencyKey::parse(format!("key-{}", numbers[0]).as_bytes()).expect("a key"));
        let shape = if is_batch { Shape::Ndjson } else { Shape::Single };
        let request = Request { body: Bytes::from(lines.join("\n")), shape, key, numbers, attempt: 0, is_answered: false, first: None };
        self.requests.push(request);
        self.unanswered += 1;
        self.at(at, What::Post { request: self.requests.len() - 1 });
    }

    pub fn on_answered(&mut self, number: usize) {
        if !std::mem::replace(&mut self.requests[number].is_answered, true) {
            self.unanswered -= 1;
        }
    }

    pub fn on_post(&mut self, number: usize) {
        let request = &mut self.requests[number];
        if request.is_answered {
            return;
        }
        request.attempt += 1;
        let (attempt, now) = (request.attempt, self.now);
        let post = Post {
            body: request.body.clone(),
            shape: request.shape,
            key: request.key.clone(),
            by: Caller::of_token("ci", Role::Ingest, None),
        };
        say!(self, "producer: request {number} of reports {:?} is posted, attempt {attempt}", self.requests[number].numbers);
        let again = now + self.chance.within(300, 4_000);
        self.at(again, What::Post { request: number });
        let at = self.wall();
        let Some(process) = self.process.as_mut().filter(|process| !process.is_stopping) else { return };
        let ingest = process.ingest.clone();
        let mut posted: Posted = Box::pin(async move { ingest.accept(post, at).await });
        match look(&mut posted) {
            Some(outcome) => self.on_outcome(number, outcome),
            None => {
                process.posts.insert((number, attempt), posted);
            }
        }
        self.commit_soon();
    }

    /// The committer has done something: answers go out.
    pub fn wake_posts(&mut self) {
        let Some(process) = self.process.as_mut().filter(|process| !process.stepped.has_more()) else { return };
        for ((request, _), mut posted) in std::mem::take(&mut process.posts) {
            // All have their answers; a first answer is read from the log, which is done on a thread that is not ours.
            let outcome = loop {
                match look(&mut posted) {
                    Some(outcome) => break outcome,
                    None => std::thread::yield_now(),
                }
            };
            self.on_outcome(request, outcome);
        }
    }

    fn on_outcome(&mut self, number: usize, outcome: Result<Committed<Answer>, AcceptError>) {
        say!(self, "producer: request {number} has its outcome: {:?}", outcome.as_ref().map(|answer| answer.get()));
        match outcome {
            Ok(answer) => {
                let answer = answer.into_inner();
                self.check_answer(number, &answer);
                if !self.is_calm && self.chance.percent(12) {
                    say!(self, "producer: the answer to request {number} is lost");
                } else {
                    let delay = self.chance.within(0, 20);
                    self.after(delay, What::Answered { request: number });
                }
            }
            Err(AcceptError::Commit(CommitError::Full(_) | CommitError::Stopped | CommitError::Store(_) | CommitError::Overloaded)) => {}
            Err(AcceptError::FirstAnswer(error)) if error.code() == "gone" => {}
            Err(error) => violated(format!("request {number} is refused: {error}")),
        }
    }

    /// What is answered is durable, and is what was posted.
    fn check_answer(&mut self, number: usize, answer: &Answer) {
        let request = &self.requests[number];
        if answer.reports.len() != request.numbers.len() {
            violated(format!(
                "the answer to request {number} has {} reports, and {} were posted",
                answer.reports.len(),
                request.numbers.len()
            ));
        }
        for (report, deliveries) in request.numbers.iter().zip(&answer.reports) {
            if deliveries.is_empty() {
                violated(format!("report {report} was accepted for nobody"));
            }
            for delivery in deliveries {
                if !self.oracle.is_durable(delivery.id) {
                    violated(format!("request {number} is answered with delivery {}, which is not durable", delivery.id));
                }
                if self.oracle.known(delivery.id).number != *report {
                    violated(format!("request {number} is answered with delivery {}, which is of another report", delivery.id));
                }
            }
        }
        let oldest = self.disk.oldest();
        let request = &mut self.requests[number];
        if request.key.is_some() {
            let is_gone = |answer: &Answer| answer.reports.iter().flatten().any(|delivery| delivery.id < oldest);
            // What is past its retention is forgotten, and made again. Of two answers that are heard at once either may be the older one.
            let is_same = request.first.as_ref().is_none_or(|first| *first == *answer || is_gone(first) || is_gone(answer));
            if !is_same {
                violated(format!("request {number} has a key and is answered {:?}, and then {answer:?}", request.first));
            }
            request.first = Some(answer.clone());
        }
    }

    /// Each report of each request has its deliveries, and those with a key once.
    pub fn check_requests(&self) {
        let oldest = self.disk.oldest();
        for (number, request) in self.requests.iter().enumerate() {
            if !request.is_answered {
                violated(format!("request {number} is never answered"));
            }
            for report in &request.numbers {
                let deliveries = self.oracle.of_report(*report);
                if deliveries.is_empty() {
                    violated(format!("report {report} was accepted and has no delivery"));
                }
                if request.key.is_none() || self.oracle.moved.contains(report) {
                    continue;
                }
                let mut seen = BTreeMap::new();
                for id in deliveries {
                    let first = *seen.entry(&self.oracle.known(*id).lane.connection).or_insert(*id);
                    if first != *id && first >= oldest {
                        violated(format!("report {report} of a request with a key was accepted twice: deliveries {first} and {id}"));
                    }
                }
            }
        }
    }
}
