//! Claims about what a querier makes of what it sees of stores.

use koios_runtime::TokioClock;

use super::*;
use crate::cluster::mock::MockStore;

fn board() -> Arc<StoreBoard> {
    let clock = Arc::new(TokioClock::starting_at(0));
    StoreBoard::new(clock, StoreReads::default(), &Metrics::new())
}

fn is_up(board: &StoreBoard, name: &str) -> bool {
    board.stores.lock()[name].health(board.clock.elapsed()) != Health::Down
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_passed_over_ever_longer_until_it_does() {
    let board = board();
    for wait in [1, 2, 4, 8, 16, 16] {
        let now = board.elapsed();
        board.failed("a", ServiceErrorCode::Unavailable, now);
        board.failed("a", ServiceErrorCode::DeadlineExceeded, now);
        tokio::time::advance(Duration::from_millis(wait * 1000 - 1)).await;
        assert!(!is_up(&board, "a"), "{wait} s");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(is_up(&board, "a"), "{wait} s");
    }
    assert_eq!(board.metrics.down.get(), 1);
    board.answered("a", Duration::ZERO);
    assert_eq!(board.metrics.down.get(), 0);
    board.failed("a", ServiceErrorCode::Unavailable, board.elapsed());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(is_up(&board, "a"));
}

#[tokio::test(start_paused = true)]
async fn damage_and_one_slow_read_say_nothing_of_a_store() {
    let board = board();
    board.answered("a", Duration::ZERO);
    let since = board.elapsed();
    board.failed("a", ServiceErrorCode::Corruption, since);
    assert!(is_up(&board, "a"));
    tokio::time::advance(Duration::from_secs(5)).await;
    board.answered("a", Duration::from_secs(1));
    board.failed("a", ServiceErrorCode::DeadlineExceeded, since);
    assert!(is_up(&board, "a"));
    board.failed("a", ServiceErrorCode::DeadlineExceeded, board.elapsed());
    assert!(!is_up(&board, "a"));
}

#[tokio::test(start_paused = true)]
async fn lagging_is_what_nineteen_of_twenty_answers_are_not() {
    let board = board();
    assert_eq!(board.hedge_after(), Duration::from_secs(3));
    for ms in 0..1000u64 {
        board.answered("a", Duration::from_millis(200 + ms % 100));
    }
    let after = board.hedge_after().as_millis();
    assert!((285..=299).contains(&after), "{after} ms");
    for _ in 0..200 {
        board.answered("a", Duration::from_millis(1));
    }
    assert_eq!(board.hedge_after(), Duration::from_millis(100));
    for _ in 0..200 {
        board.answered("a", Duration::from_secs(20));
    }
    assert_eq!(board.hedge_after(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn silence_is_longer_than_streams_usually_take() {
    let board = board();
    assert_eq!(board.silence(), Duration::from_secs(2));
    for (gap, silence) in [(10, 2_000), (2_000, 8_000), (20_000, 30_000)] {
        for _ in 0..200 {
            board.item_came("a", Duration::from_millis(gap));
        }
        assert_eq!(board.silence(), Duration::from_millis(silence), "{gap}");
    }
}

#[tokio::test(start_paused = true)]
async fn i6_a_tenth_of_the_reads_may_be_hedged() {
    let board = board();
    let hedges = |board: &StoreBoard| (0..100).filter(|_| board.take_hedge("a")).count();
    assert_eq!(hedges(&board), 10);
    for _ in 0..50 {
        drop(board.begin("a", Why::Assigned));
    }
    drop(board.begin("a", Why::Hedge));
    assert_eq!(hedges(&board), 5);
    assert_eq!(board.stores.lock()["a"].under_way, 0);
    // One that did not answer is no slow one.
    board.failed("a", ServiceErrorCode::Unavailable, board.elapsed());
    assert_eq!(hedges(&board), 100);
}

#[tokio::test(start_paused = true)]
async fn only_members_that_are_passed_over_now_are_counted() {
    let board = board();
    let member = |name: &str| StoreMember {
        name: name.to_owned(),
        client: Arc::new(MockStore::default()),
    };
    let members = [member("a"), member("b")];
    for name in ["a", "b"] {
        board.failed(name, ServiceErrorCode::Unavailable, board.elapsed());
    }
    board.see(&members);
    assert_eq!(board.metrics.down.get(), 2);
    board.see(&members[..1]);
    assert_eq!(board.metrics.down.get(), 1);
    assert!(!board.stores.lock().contains_key("b"));
    tokio::time::advance(Duration::from_secs(1)).await;
    board.see(&members);
    assert_eq!(board.metrics.down.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_due_is_tried_by_one_read() {
    let board = board();
    let health = |name: &str| board.stores.lock()[name].health(board.elapsed());
    for name in ["a", "b"] {
        board.failed(name, ServiceErrorCode::Unavailable, board.elapsed());
    }
    assert!(!board.take_trials(["a"].into_iter()));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(board.take_trials(["a"].into_iter()));
    assert!(!board.take_trials(["a", "b"].into_iter()));
    assert_eq!((health("a"), health("b")), (Health::Down, Health::Due));
    // The trial fails: it counted already.
    board.failed("a", ServiceErrorCode::DeadlineExceeded, board.elapsed());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(health("a"), Health::Due);
    assert!(board.take_trials(["a"].into_iter()));
    board.answered("a", Duration::ZERO);
    assert_eq!(health("a"), Health::Up);
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_streams_go_on_is_not_silent_but_may_be_closed() {
    let board = board();
    board.answered("a", Duration::ZERO);
    let since = board.elapsed();
    tokio::time::advance(Duration::from_secs(5)).await;
    board.item_came("a", Duration::from_secs(5));
    // Another of its streams, or an answer, takes long.
    board.failed("a", ServiceErrorCode::DeadlineExceeded, since);
    assert!(is_up(&board, "a"));
    // It is stopping: what it has begun goes on, and nothing is begun.
    board.failed("a", ServiceErrorCode::Unavailable, since);
    assert!(!is_up(&board, "a"));
    board.item_came("a", Duration::from_secs(5));
    assert!(!is_up(&board, "a"));
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_was_cut_short_says_nothing() {
    let board = board();
    let health = || board.stores.lock()["a"].health(board.elapsed());
    let trial = || {
        assert!(board.take_trials(["a"].into_iter()));
        let trial = board.begin("a", Why::Hedge);
        assert_eq!(health(), Health::Down);
        trial
    };
    board.failed("a", ServiceErrorCode::Unavailable, board.elapsed());
    tokio::time::advance(Duration::from_secs(1)).await;
    let cut_short = trial();
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(cut_short);
    assert_eq!(health(), Health::Due, "the next read may try it");
    // As long as an answer may take: it does not answer.
    let given_up = trial();
    tokio::time::advance(board.hedge_after()).await;
    drop(given_up);
    assert_eq!(board.stores.lock()["a"].failures, 2);
}
