//! Lines for whoever started the program. That one of them cannot be written stops nothing.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// A line on standard output.
macro_rules! say {
    ($($words:tt)*) => { $crate::output::say(format_args!($($words)*)) };
}

/// A line on standard error.
macro_rules! complain {
    ($($words:tt)*) => { $crate::output::complain(format_args!($($words)*)) };
}

/// Whether something of the output could not be written though somebody waits for it.
static CUT_SHORT: AtomicBool = AtomicBool::new(false);

/// Writes a line to standard output. Who reads it may have seen enough (`| head`): the command does its work all the same, and its exit
/// code is what came of that.
pub(crate) fn say(line: Arguments<'_>) {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe && !CUT_SHORT.swap(true, Ordering::Relaxed) => {
            complain(format_args!(
                "koios: standard output cannot be written, the rest of it is missing: {e}"
            ));
        }
        _ => {}
    }
}

/// Writes a line to standard error.
pub(crate) fn complain(line: Arguments<'_>) {
    // Who does not see it cannot be told.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Whether output is missing for another reason than that nobody reads it.
pub(crate) fn is_cut_short() -> bool {
    CUT_SHORT.load(Ordering::Relaxed)
}
