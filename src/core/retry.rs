//! Backoff, and what a refusal means: pure decisions, with `now` and jitter as arguments.

use super::event::DeadReason;
use super::types::Millis;

/// How often and how long a delivery is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The first wait, in milliseconds.
    pub initial_ms: u64,
    /// The longest wait, in milliseconds.
    pub max_ms: u64,
    /// Refusals after which a delivery becomes a dead letter. Outages don't count.
    pub attempts: u32,
}

impl RetryPolicy {
    /// The wait after the n-th failure in a row (n from 1): doubled each time up to the longest, and half of it by chance, so that lanes
    /// and services that failed together do not come back together. `jitter` is any random number.
    pub fn backoff_ms(&self, failures: u32, jitter: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(40);
        let full = self.initial_ms.saturating_mul(1 << doublings).min(self.max_ms).max(1);
        let half = full / 2;
        half + (full - half) * u64::from(jitter) / u64::from(u32::MAX)
    }
}

/// What to do with a delivery that the broker refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send it again, not before `at`.
    Retry {
        /// When.
        at: Millis,
        /// Refusals charged so far, this one included if it is charged.
        attempts: u32,
    },
    /// Send it again, and nothing else on this lane either before `at`: the broker has no room.
    Pause {
        /// When.
        at: Millis,
    },
    /// Give up on it.
    Dead(DeadReason),
}

/// Reason codes of PUBACK and PUBREC that mean more than "no" (MQTT 5.0 §3.4.2.1).
pub mod code {
    /// Unspecified error.
    pub const UNSPECIFIED: u8 = 0x80;
    /// Protocol error (CONNACK, DISCONNECT).
    pub const PROTOCOL_ERROR: u8 = 0x82;
    /// Implementation specific error.
    pub const IMPLEMENTATION: u8 = 0x83;
    /// Unsupported protocol version (CONNACK).
    pub const PROTOCOL_VERSION: u8 = 0x84;
    /// Not authorized.
    pub const NOT_AUTHORIZED: u8 = 0x87;
    /// Topic name invalid.
    pub const TOPIC_INVALID: u8 = 0x90;
    /// Packet identifier in use.
    pub const ID_IN_USE: u8 = 0x91;
    /// Packet identifier not found (PUBREL, PUBCOMP).
    pub const ID_NOT_FOUND: u8 = 0x92;
    /// Packet too large.
    pub const TOO_LARGE: u8 = 0x95;
    /// Quota exceeded.
    pub const QUOTA: u8 = 0x97;
    /// Payload format invalid.
    pub const PAYLOAD_INVALID: u8 = 0x99;
    /// Retain not supported (CONNACK, DISCONNECT).
    pub const RETAIN_NOT_SUPPORTED: u8 = 0x9a;
    /// QoS not supported (CONNACK, DISCONNECT).
    pub const QOS_NOT_SUPPORTED: u8 = 0x9b;
    /// Tidings' own, and no code of the standard's: the broker closed the connection instead of an answer.
    pub const HUNG_UP: u8 = 0xff;
    /// Tidings' own, likewise: an earlier report of its topic was refused once more, and it waits behind that.
    pub const WAITS_BEHIND: u8 = 0xfe;
}

/// Decides about a refusal with a reason code ≥ 0x80.
///
/// `attempts` were charged before. `is_charged` tells whether errors that don't say whose fault they are (0x80, 0x83) are charged: if another delivery has
/// got through since this one was last tried, or none can. What is charged to nobody waits as after `rounds` of refusals in a row.
pub fn judge(policy: &RetryPolicy, reason: u8, attempts: u32, is_charged: bool, rounds: u32, now: Millis, jitter: u32) -> Verdict {
    let dead = |message: String| Verdict::Dead(DeadReason { code: "refused".into(), broker_code: Some(reason), message });
    match reason {
        code::QUOTA => Verdict::Pause { at: now.plus(policy.backoff_ms(attempts.max(rounds), jitter)) },
        code::TOPIC_INVALID | code::PAYLOAD_INVALID => {
            dead(format!("the broker refused it with 0x{reason:02x} ({}), which no retry can change", reason_name(reason)))
        }
        _ => {
            let is_charged = is_charged || !names_no_culprit(reason);
            let attempts = attempts + u32::from(is_charged);
            if attempts >= policy.attempts {
                return dead(format!(
                    "the broker refused it {attempts} times, last with 0x{reason:02x} ({}); {}",
                    reason_name(reason),
                    advice(reason)
                ));
            }
            let failures = if is_charged { attempts } else { attempts.max(rounds) };
            Verdict::Retry { at: now.plus(policy.backoff_ms(failures, jitter)), attempts }
        }
    }
}

/// Whether a reason code does not say if it is about the message or about the broker.
pub fn names_no_culprit(reason: u8) -> bool {
    matches!(reason, code::UNSPECIFIED | code::IMPLEMENTATION)
}

fn advice(reason: u8) -> &'static str {
    match reason {
        code::NOT_AUTHORIZED => "let this user publish to the topic (the broker's access control)",
        _ => "look into the broker's log",
    }
}

/// What a reason code is called (MQTT 5.0 §2.4).
pub fn reason_name(reason: u8) -> &'static str {
    match reason {
        0x00 => "success",
        0x10 => "no matching subscribers",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "unsupported protocol version",
        0x85 => "client identifier not valid",
        0x86 => "bad user name or password",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8a => "banned",
        0x8b => "server shutting down",
        0x8c => "bad authentication method",
        0x8d => "keep alive timeout",
        0x8e => "session taken over",
        0x8f => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x92 => "packet identifier not found",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9a => "retain not supported",
        0x9b => "QoS not supported",
        0x9c => "use another server",
        0x9d => "server moved",
        0x9e => "shared subscriptions not supported",
        0x9f => "connection rate exceeded",
        0xa0 => "maximum connect time",
        0xa1 => "subscription identifiers not supported",
        0xa2 => "wildcard subscriptions not supported",
        code::HUNG_UP => "the broker hung up",
        code::WAITS_BEHIND => "waits behind an earlier one of its topic",
        _ => "unknown reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy { initial_ms: 500, max_ms: 60_000, attempts: 3 };
    const NOW: Millis = Millis(1_000_000);

    #[test]
    fn backoff_doubles_up_to_the_longest_wait_and_never_beyond() {
        assert_eq!(POLICY.backoff_ms(1, u32::MAX), 500);
        assert_eq!(POLICY.backoff_ms(1, 0), 250);
        assert_eq!(POLICY.backoff_ms(3, u32::MAX), 2_000);
        for failures in [8, 50, u32::MAX] {
            assert_eq!(POLICY.backoff_ms(failures, u32::MAX), 60_000);
        }
    }

    #[test]
    fn a_refusal_is_retried_until_its_attempts_are_used_up() {
        assert_eq!(judge(&POLICY, code::NOT_AUTHORIZED, 0, false, 5, NOW, u32::MAX), Verdict::Retry { at: NOW.plus(500), attempts: 1 });
        let Verdict::Dead(reason) = judge(&POLICY, code::NOT_AUTHORIZED, 2, false, 5, NOW, 0) else {
            panic!("the third refusal is the last")
        };
        assert_eq!(reason.broker_code, Some(code::NOT_AUTHORIZED));
        assert!(reason.message.contains("refused it 3 times, last with 0x87 (not authorized)"), "{}", reason.message);
    }

    #[test]
    fn what_no_retry_can_change_is_dead_at_once() {
        for reason in [code::TOPIC_INVALID, code::PAYLOAD_INVALID] {
            assert!(matches!(judge(&POLICY, reason, 0, true, 1, NOW, 0), Verdict::Dead(_)));
        }
    }

    #[test]
    fn a_full_broker_charges_nobody() {
        assert_eq!(judge(&POLICY, code::QUOTA, 2, true, 1, NOW, u32::MAX), Verdict::Pause { at: NOW.plus(1_000) });
    }

    #[test]
    fn an_error_that_names_no_culprit_is_charged_only_while_others_get_through() {
        assert!(matches!(judge(&POLICY, code::UNSPECIFIED, 2, false, 1, NOW, 0), Verdict::Retry { attempts: 2, .. }));
        assert!(matches!(judge(&POLICY, code::UNSPECIFIED, 2, true, 1, NOW, 0), Verdict::Dead(_)));
    }

    #[test]
    fn what_is_charged_to_nobody_waits_the_longer_the_more_rounds_of_refusals_have_come() {
        for code in [code::QUOTA, code::UNSPECIFIED] {
            let at = match judge(&POLICY, code, 0, false, 4, NOW, u32::MAX) {
                Verdict::Pause { at } | Verdict::Retry { at, attempts: 0 } => at,
                other => panic!("{other:?}"),
            };
            assert_eq!(at, NOW.plus(4_000));
        }
    }
}
