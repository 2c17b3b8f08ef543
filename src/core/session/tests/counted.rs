//! What is counted of sends.

use super::*;

#[test]
fn what_a_cut_took_is_counted_once_however_often_it_is_tried_again() {
    let (mut world, _) = cut_in_flight();
    world.is_away[0] = true;
    world.steps_until("it is tried again and again", |world| world.session.failures >= 20);
    world.is_away[0] = false;
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    assert_eq!(world.lost, 1);
}
