//! One thread of a running process that does not go on, while the others do: what a core that hangs looks like from outside.
//! It is held as a debugger holds it (`ptrace`); needs the right to trace one's own children.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A thread that is held; it goes on when this is dropped.
pub struct HungThread {
    release: Option<Sender<()>>,
    /// The kernel lets only the thread that holds another one let it go.
    tracer: Option<JoinHandle<()>>,
}

impl HungThread {
    /// Holds the thread of this name of a process. It stands still when this returns.
    ///
    /// # Errors
    /// There is no such thread, or it may not be traced.
    ///
    /// # Panics
    /// If the tracing thread does.
    pub fn hold(process: u32, name: &str) -> io::Result<Self> {
        let thread = thread_id(process, name)?;
        let (release, released) = channel::<()>();
        let (report, held) = channel();
        let tracer = crate::thread(move || {
            let outcome = stop(thread);
            let is_held = outcome.is_ok();
            report.send(outcome).expect("whoever asked waits for this");
            if is_held {
                // Told to, or the holder is gone: both are the end of it. A thread that has died meanwhile needs nothing.
                let _told = released.recv();
                let _gone = ptrace::detach(thread, None);
            }
        });
        let hung = Self { release: Some(release), tracer: Some(tracer) };
        held.recv().expect("the tracer says how it went")?;
        Ok(hung)
    }
}

impl Drop for HungThread {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            tracer.join().expect("the tracer does not panic");
        }
    }
}

fn stop(thread: Pid) -> nix::Result<()> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    waitpid(thread, Some(WaitPidFlag::__WALL)).map(drop)
}

fn thread_id(process: u32, name: &str) -> io::Result<Pid> {
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let folder = entry?;
        let is_it = std::fs::read_to_string(folder.path().join("comm"))?.trim() == name;
        let id = folder.file_name().to_string_lossy().parse();
        if let (true, Ok(id)) = (is_it, id) {
            return Ok(Pid::from_raw(id));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("process {process} has no thread {name}")))
}
