//! The pool in which passwords are worked on: as many at once as there are processors, a bounded
//! number waiting, on threads for blocking work. A flood of logins then slows logins, not stanzas.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use chancery_api::ApiError;
use chancery_runtime::{Ids, Tasks};

use crate::scram::{Given, KeySet, Keys, Mechanism, SALT_BYTES};

/// Passwords that may wait for a thread: about a second of work. A further one is refused.
const WAITING_LIMIT: usize = 256;

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct PasswordPool {
    room: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    threads: usize,
    tasks: Tasks,
    ids: Ids,
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PasswordPool {
    /// A pool of `threads`; 0 = one per processor.
    pub fn new(threads: usize, tasks: Tasks, ids: Ids) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if threads == 0 { processors } else { threads };
        Self {
            room: Arc::new(Semaphore::new(threads)),
            waiting: Arc::new(AtomicUsize::new(0)),
            threads,
            tasks,
            ids,
        }
    }

    /// How many work at once.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How many are in the pool, working or waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Makes the keys that a client with this (prepared) password would have.
    pub async fn derive(
        &self,
        mechanism: Mechanism,
        password: Vec<u8>,
        salt: Vec<u8>,
        iterations: u32,
    ) -> Result<Keys, ApiError> {
        self.run(move || Keys::derive(mechanism, &password, &salt, iterations))
            .await
    }

    /// Keys for both mechanisms, with fresh salts; ready ones pass through.
    pub async fn keys(&self, given: Given, iterations: u32) -> Result<KeySet, ApiError> {
        let password = match given {
            Given::Keys(keys) => return Ok(keys),
            Given::Password(password) => password,
        };
        let salts = Mechanism::ALL.map(|_| self.ids.bytes::<SALT_BYTES>());
        self.run(move || {
            let mut set = KeySet::default();
            for (mechanism, salt) in Mechanism::ALL.into_iter().zip(salts) {
                set.set(
                    mechanism,
                    Keys::derive(mechanism, password.as_bytes(), &salt, iterations),
                );
            }
            set
        })
        .await
    }

    async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(Arc::clone(&self.waiting));
        if before >= WAITING_LIMIT + self.threads {
            return Err(ApiError::resource("too many passwords wait"));
        }
        let permit = Arc::clone(&self.room)
            .acquire_owned()
            .await
            .map_err(|_| ApiError::unavailable("the directory ends"))?;
        // The work goes on when the caller goes away, so it keeps its place until it is done.
        let done = self.tasks.spawn_blocking("pbkdf2", move || {
            let result = work();
            drop((permit, waiting));
            result
        });
        done.await
            .map_err(|_| ApiError::internal("password work failed"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use chancery_api::Code;

    #[tokio::test]
    async fn a_full_pool_refuses_and_recovers() {
        let pool = PasswordPool::new(1, Tasks::new(), Ids::seeded(1));
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let held = pool.clone();
        let tasks = Tasks::new();
        let first = tasks.spawn("first", async move {
            held.run(move || wait.recv().unwrap()).await.unwrap();
        });
        while pool.waiting() < 1 {
            tokio::task::yield_now().await;
        }
        let mut queued = Vec::new();
        for _ in 0..WAITING_LIMIT {
            let mut next = Box::pin(pool.run(|| ()));
            // Polled once, so that it waits in the pool.
            let polled = std::future::poll_fn(|cx| {
                std::task::Poll::Ready(next.as_mut().poll(cx).is_pending())
            });
            assert!(polled.await);
            queued.push(next);
        }
        assert_eq!(pool.run(|| ()).await.unwrap_err().code, Code::Resource);
        drop(queued);
        go.send(()).unwrap();
        first.await.unwrap();
        pool.run(|| ()).await.unwrap();
        assert_eq!(pool.waiting(), 0);
    }
}
