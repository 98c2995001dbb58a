//! Signals: CRI counts them by its own order, the kernel by signal(7).

use wharf_api::v1::Signal;

/// Kernel numbers (x86-64 and arm64) of CRI's signals from `SIGABRT` to `SIGXFSZ`, in CRI's order.
const STANDARD: [i32; 34] = [
    6, 14, 7, 17, 17, 18, 8, 1, 4, 2, 29, 6, 9, 13, 29, 27, 30, 3, 11, 16, 19, 31, 15, 5, 20, 21,
    22, 23, 10, 12, 26, 28, 24, 25,
];
/// Kernel number of `SIGRTMIN` as the C library shows it (glibc keeps 32 and 33 for itself).
const RTMIN: i32 = 34;
/// CRI's number of `SIGRTMIN`; real-time signals follow each other up to `SIGRTMAX`, 65.
const CRI_RTMIN: i32 = 35;
/// CRI's number of `SIGRTMAX`.
const CRI_RTMAX: i32 = 65;

/// The kernel's number; `None` for the runtime's default.
pub(crate) fn to_kernel(signal: Signal) -> Option<i32> {
    let n = i32::from(signal);
    if n >= CRI_RTMIN {
        return Some(n - CRI_RTMIN + RTMIN);
    }
    let index = usize::try_from(n).ok()?.checked_sub(1)?;
    STANDARD.get(index).copied()
}

/// CRI's word for a kernel signal; the default for what CRI has no word for.
pub(crate) fn from_kernel(number: i32) -> Signal {
    // SIGCLD, SIGIOT and SIGPOLL are second names: they come after the usual ones.
    let standard = || {
        let index = STANDARD.iter().position(|n| *n == number)?;
        Signal::try_from(i32::try_from(index).ok()? + 1).ok()
    };
    let real_time = || {
        (RTMIN..=RTMIN + CRI_RTMAX - CRI_RTMIN)
            .contains(&number)
            .then(|| Signal::try_from(number - RTMIN + CRI_RTMIN).ok())
            .flatten()
    };
    standard()
        .or_else(real_time)
        .unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_kernels_numbers() {
        for (signal, number) in [
            (Signal::Sigabrt, 6),
            (Signal::Sigchld, 17),
            (Signal::Sighup, 1),
            (Signal::Sigint, 2),
            (Signal::Sigkill, 9),
            (Signal::Sigquit, 3),
            (Signal::Sigterm, 15),
            (Signal::Sigusr1, 10),
            (Signal::Sigusr2, 12),
            (Signal::Sigwinch, 28),
            (Signal::Sigxfsz, 25),
            (Signal::Sigrtmin, 34),
            (Signal::Sigrtminplus3, 37),
            (Signal::Sigrtminplus15, 49),
            (Signal::Sigrtmaxminus14, 50),
            (Signal::Sigrtmaxminus1, 63),
            (Signal::Sigrtmax, 64),
        ] {
            assert_eq!(to_kernel(signal), Some(number), "{signal:?}");
            assert_eq!(from_kernel(number), signal, "{number}");
        }
        assert_eq!(to_kernel(Signal::RuntimeDefault), None);
    }

    #[test]
    fn every_signal_comes_back_as_the_same_number() {
        for n in 1..=65 {
            let number = to_kernel(Signal::try_from(n).unwrap()).unwrap();
            assert_eq!(to_kernel(from_kernel(number)), Some(number), "{n}");
        }
        for unknown in [0, -1, 32, 33, 65, i32::MAX, i32::MIN] {
            assert_eq!(from_kernel(unknown), Signal::RuntimeDefault);
        }
    }
}
