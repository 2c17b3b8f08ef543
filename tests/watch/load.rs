//! Reports at a steady pace, for as long as they are wanted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::tidings::Tidings;

/// Ten reports at each beat, at every QoS.
const BEAT: Duration = Duration::from_millis(50);

/// Posts reports while `meanwhile` takes, all of which have to be accepted; gives the ledger.
pub fn under_load(tidings: &Tidings, meanwhile: impl FnOnce()) -> Ledger {
    let (client, is_over) = (tidings.client(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut ledger = Ledger::default();
            for beat in 0u64.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let one = |place: u64, qos| report(action_for(qos), &format!("p{place}"), beat * 10 + place);
                let reports: Vec<String> = (0..9).map(|place| one(place, if place % 2 == 0 { 1 } else { 2 })).collect();
                ledger.post_many(&client, &reports);
                ledger.post_raw(&client, &one(9, 0));
                std::thread::sleep(BEAT);
            }
            ledger
        });
        // Also when it panics, so that the panic is seen.
        let _stop = StopAtDrop(&is_over);
        meanwhile();
        is_over.store(true, Ordering::Relaxed);
        producer.join().unwrap()
    })
}

struct StopAtDrop<'a>(&'a AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
