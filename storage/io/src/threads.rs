//! Threads: one for each core.
//!
//! Owns how threads are started and where they run. Never shares anything between them: what they need moves in.

use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// Starts the thread of a core, bound to the processor `cpu` if one is given.
///
/// # Errors
///
/// The system gives no more threads, or `cpu` is not one of [`available_cpus`].
pub fn spawn_core<T, F>(name: &str, cpu: Option<usize>, body: F) -> Result<JoinHandle<T>>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if let Some(cpu) = cpu.filter(|cpu| !available_cpus().contains(cpu)) {
        let words = format!("this process may not use cpu {cpu}");
        return Err(Error::new("start thread", std::io::ErrorKind::InvalidInput, words));
    }
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if let Some(cpu) = cpu {
                // A processor that was taken away since the check leaves the thread unbound, which is only slower.
                let _ = crate::os::bind_to_cpu(cpu);
            }
            body()
        })
        .map_err(|error| Error::from_std("start thread", &error))
}

/// The processors that this process may use, by number, as its affinity says.
pub fn available_cpus() -> Vec<usize> {
    crate::os::available_cpus()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_core_runs_on_the_cpu_that_it_was_given() {
        let cpu = *available_cpus().last().unwrap();
        let thread = spawn_core("bound", Some(cpu), available_cpus).unwrap();
        assert_eq!(thread.join().unwrap(), [cpu]);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        let error = spawn_core("unbound", Some(100_000), || ()).unwrap_err();
        assert_eq!(error.to_string(), "start thread: this process may not use cpu 100000");
    }
}
