//! The threads of a session.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread::JoinHandle;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::status::{Failure, Result, amdanet_status};

/// Threads of one session, or those that all share. When it is dropped its own threads have ended.
pub struct Pool {
    own: Option<ThreadPool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` of its own, or with 0 the shared ones: one for each processor.
    pub fn new(threads: u32) -> Result<Self> {
        if threads == 0 {
            return Ok(Self { own: None, threads: Vec::new() });
        }
        let started = Mutex::new(Vec::new());
        let own = ThreadPoolBuilder::new()
            .num_threads(threads as usize)
            .spawn_handler(|thread| {
                let builder = std::thread::Builder::new().name(format!("amdanet {}", thread.index()));
                let handle = builder.spawn(|| thread.run())?;
                started.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
                Ok(())
            })
            .build();
        let threads_started = started.into_inner().unwrap_or_else(PoisonError::into_inner);
        match own {
            Ok(own) => Ok(Self { own: Some(own), threads: threads_started }),
            Err(e) => Err(Failure::new(
                amdanet_status::OutOfMemory,
                format!("session_params.threads: {threads} threads cannot be started: {e}"),
            )),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.own.as_ref().map_or_else(rayon::current_num_threads, ThreadPool::current_num_threads)
    }

    /// Runs `f` on them.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.own {
            Some(pool) => pool.install(f),
            None => crate::cpu::on_pool(f),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.own = None;
        for thread in self.threads.drain(..) {
            // What a thread met was told to whoever waited for it.
            let _ = thread.join();
        }
    }
}
