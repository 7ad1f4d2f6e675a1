//! One value and those who wait for it to change, woken in the order in which they began to wait.
//!
//! Tokio's channel of this name spreads its waiters at random, so that two runs of one seed wake them in different
//! orders and differ from there on (I15). Everything simulated uses this one.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use tokio::sync::Notify;

/// A channel that keeps the last value only.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// There is no sender any more, so nothing will change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left who could change the value")]
pub struct Closed;

/// There is no receiver; the value comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left who could see the value")]
pub struct Unseen<T>(pub T);

#[derive(Debug)]
struct Versioned<T> {
    value: T,
    /// Changes so far.
    version: u64,
}

#[derive(Debug)]
struct Shared<T> {
    newest: RwLock<Versioned<T>>,
    changed: Notify,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

impl<T> Shared<T> {
    /// Whoever holds one may take another: a sender that waits does not come between them.
    fn lock(&self) -> RwLockReadGuard<'_, Versioned<T>> {
        self.newest.read_recursive()
    }

    fn borrow(&self) -> Ref<'_, T> {
        Ref::new(self.lock())
    }

    /// Waits for a version other than `seen`.
    async fn changed(&self, seen: &mut u64) -> Result<(), Closed> {
        loop {
            // Made before the look at the value: whatever changes after that look wakes it.
            let changed = self.changed.notified();
            // Before it too: what the last sender sent is there once it is gone.
            let closed = self.senders.load(Ordering::Acquire) == 0;
            let version = self.lock().version;
            if version != *seen {
                *seen = version;
                return Ok(());
            }
            if closed {
                return Err(Closed);
            }
            changed.await;
        }
    }
}

/// The value, locked against changes: keep it short, and never across an await.
#[derive(Debug)]
pub struct Ref<'a, T>(MappedRwLockReadGuard<'a, T>);

impl<'a, T> Ref<'a, T> {
    fn new(newest: RwLockReadGuard<'a, Versioned<T>>) -> Self {
        Self(RwLockReadGuard::map(newest, |newest| &newest.value))
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// A channel without receivers yet.
    pub fn new(value: T) -> Self {
        let shared = Shared {
            newest: RwLock::new(Versioned { value, version: 0 }),
            changed: Notify::new(),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Sends a value to receivers.
    ///
    /// # Errors
    /// [`Unseen`] when there are none; the value stays what it was.
    pub fn send(&self, value: T) -> Result<(), Unseen<T>> {
        if self.shared.receivers.load(Ordering::Acquire) == 0 {
            return Err(Unseen(value));
        }
        self.send_replace(value);
        Ok(())
    }

    /// Sends a value whether or not there are receivers, and returns the one before.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_if_modified(|newest| {
            std::mem::swap(newest, &mut value);
            true
        });
        value
    }

    /// Changes the value in place; receivers hear of it when `modify` says that it did.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        {
            let mut newest = self.shared.newest.write();
            if !modify(&mut newest.value) {
                return false;
            }
            newest.version += 1;
        }
        self.shared.changed.notify_waiters();
        true
    }

    /// The newest value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    /// A receiver that has seen the value of now.
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver::new(&self.shared, self.shared.lock().version)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.changed.notify_waiters();
        }
    }
}

/// Sees the value and waits for changes.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Receiver<T> {
    fn new(shared: &Arc<Shared<T>>, seen: u64) -> Self {
        shared.receivers.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(shared),
            seen,
        }
    }

    /// Waits until there is a value that this receiver has not seen, and takes it for seen.
    ///
    /// # Errors
    /// [`Closed`] when there is none and no sender any more.
    ///
    /// # Cancel safety
    /// Cancel safe: a change is not lost.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        self.shared.changed(&mut self.seen).await
    }

    /// Waits until the value is as `wanted`, which it may be at once, and takes it for seen.
    ///
    /// # Errors
    /// [`Closed`] when it is not and there is no sender any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for(&mut self, wanted: impl Fn(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        let Self { shared, seen } = self;
        loop {
            {
                let newest = shared.lock();
                *seen = newest.version;
                if wanted(&newest.value) {
                    return Ok(Ref::new(newest));
                }
            }
            shared.changed(seen).await?;
        }
    }

    /// The newest value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    /// The newest value, which is seen by that.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let newest = self.shared.lock();
        self.seen = newest.version;
        Ref::new(newest)
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self::new(&self.shared, self.seen)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::{CancellationToken, Clock as _, TaskGroup, TokioClock};

    #[tokio::test]
    async fn changes_are_seen_once_and_the_last_one_counts() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(*receiver.borrow(), 1);
        sender.send(2).unwrap();
        assert_eq!(sender.send_replace(3), 2);
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), 3);
        assert!(!sender.send_if_modified(|_| false));
        sender.send(4).unwrap();
        assert_eq!(*receiver.borrow_and_update(), 4);
        drop(sender);
        assert_eq!(receiver.changed().await, Err(Closed));
    }

    #[tokio::test]
    async fn a_value_nobody_sees_comes_back() {
        let sender = Sender::new(1);
        assert_eq!(sender.send(2), Err(Unseen(2)));
        assert_eq!(*sender.borrow(), 1);
        let receiver = sender.subscribe();
        let clone = receiver.clone();
        drop(receiver);
        sender.send(2).unwrap();
        assert_eq!(*clone.borrow(), 2);
        drop(clone);
        assert_eq!(sender.send(3), Err(Unseen(3)));
    }

    #[tokio::test]
    async fn a_condition_is_waited_for() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(*receiver.wait_for(|v| *v == 1).await.unwrap(), 1);
        let waiting = async { receiver.wait_for(|v| *v > 2).await.map(|v| *v) };
        let sending = async {
            for value in 2..5 {
                sender.send_replace(value);
                tokio::task::yield_now().await;
            }
        };
        let (waited, ()) = tokio::join!(waiting, sending);
        assert!(waited.unwrap() > 2);
        let other = sender.clone();
        drop(sender);
        other.send(1).unwrap();
        drop(other);
        assert!(receiver.wait_for(|v| *v == 9).await.is_err());
        assert_eq!(*receiver.wait_for(|v| *v == 1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_the_last_sender_sent_is_seen_after_it_is_gone() {
        for _ in 0..200 {
            let (sender, mut receiver) = channel(0);
            let sending = std::thread::scope(|scope| {
                let sending = scope.spawn(move || {
                    sender.send_replace(1);
                });
                let seen = futures::executor::block_on(receiver.changed());
                assert_eq!((seen, *receiver.borrow()), (Ok(()), 1));
                sending.join()
            });
            sending.unwrap();
            assert_eq!(receiver.changed().await, Err(Closed));
        }
    }

    #[test]
    fn a_value_may_be_borrowed_twice_while_a_sender_waits() {
        let (sender, receiver) = channel(0);
        std::thread::scope(|scope| {
            let first = receiver.borrow();
            let sending = scope.spawn(|| sender.send_replace(1));
            // Long enough for it to wait for the first.
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!((*first, *receiver.borrow()), (0, 0));
            drop(first);
            assert_eq!(sending.join().unwrap(), 0);
        });
    }

    /// One order, and always the same: that of the waiting.
    #[tokio::test(start_paused = true)]
    async fn i15_waiters_wake_in_the_order_in_which_they_began_to_wait() {
        let sender = Sender::new(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let tasks = TaskGroup::new(CancellationToken::new());
        for n in 0..40 {
            let mut receiver = sender.subscribe();
            let woken = Arc::clone(&woken);
            tasks.spawn_cancelled("waiter", async move {
                while receiver.changed().await.is_ok() {
                    woken.lock().push(n);
                }
            });
        }
        let clock = TokioClock::starting_at(0);
        for round in 1..4 {
            clock.sleep(Duration::from_millis(1)).await;
            sender.send_replace(round);
        }
        clock.sleep(Duration::from_millis(1)).await;
        let in_order: Vec<i32> = (0..3).flat_map(|_| 0..40).collect();
        assert_eq!(*woken.lock(), in_order);
        tasks.stop().await;
    }
}
