//! The system call filter: from the specification's profile to a classic BPF program.
//!
//! libseccomp tests call numbers one after the other; the kernel walks that list at every load (it
//! emulates the program for each number). Here the numbers of an ABI are cut into ranges of equal
//! decision, and a binary search over the ranges finds the decision: about a third of the
//! instructions, a thirtieth of the steps. What is decided is the same as by runc with libseccomp:
//!
//! - A call of an ABI that the profile does not list kills the thread (libseccomp's "bad
//!   architecture").
//! - A rule without conditions wins over those with conditions; else the first that matches decides.
//! - Unless the default action lets calls pass, a number above the highest one that the profile
//!   names answers ENOSYS (runc's stub), so that programs fall back instead of giving up.
//! - Conditions compare 64 bits. i386 callers have 32 bits, which the kernel extends with zeros.
//!
//! On purpose different: x32 is never allowed. Listed, its calls answer ENOSYS, as they do on
//! kernels without it; not listed, they kill.

mod assembler; // instructions, from the last to the first
mod default_profile; // what containers get that ask for the runtime's default
mod generate; // decisions to instructions
mod resolve; // profile to decisions of each ABI
mod table; // call numbers

use crate::spec;

pub use default_profile::default_profile;

/// The most instructions that the kernel loads: `BPF_MAXINSNS`.
pub const INSTRUCTIONS_MAX: usize = 4096;
/// The most rules (names of all entries together) that are compiled.
pub const RULES_MAX: usize = 65536;

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// An array of `struct sock_filter`, 8 bytes each, in native byte order.
    pub code: Vec<u8>,
    /// Flags of `seccomp(2)`: `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// Names in the profile that no ABI of this architecture has; they have no effect.
    pub unknown: Vec<String>,
}

impl Program {
    /// How many instructions the program has.
    pub fn instructions(&self) -> usize {
        self.code.len() / 8
    }
}

/// Why a profile cannot be compiled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// A value is not allowed.
    #[error("seccomp: {field}: {problem}")]
    Invalid {
        /// Which part of the profile.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Allowed by the specification, but not here yet.
    #[error("seccomp: {0} is not supported yet")]
    Unsupported(String),
    /// The program is longer than the kernel takes.
    #[error(
        "seccomp: the profile needs {0} instructions, the kernel takes {INSTRUCTIONS_MAX}: use fewer rules with conditions"
    )]
    TooLong(usize),
}

impl SeccompError {
    /// The class of the failure.
    pub fn kind(&self) -> wharf_types::Kind {
        match self {
            Self::Unsupported(_) => wharf_types::Kind::Unsupported,
            Self::Invalid { .. } | Self::TooLong(_) => wharf_types::Kind::Invalid,
        }
    }
}

/// A machine's architecture: the ABIs that its kernel may offer together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// x86-64 with i386 (and x32, which is always denied).
    X86_64,
}

impl Architecture {
    /// The one that this build is for; none when there is no table of calls for it yet.
    pub const fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else {
            None
        }
    }

    const fn abis(self) -> &'static [Abi] {
        match self {
            Self::X86_64 => &[Abi::X86_64, Abi::I386],
        }
    }

    const fn native_abi(self) -> Abi {
        match self {
            Self::X86_64 => Abi::X86_64,
        }
    }
}

/// A calling convention with call numbers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Abi {
    X86_64,
    I386,
}

impl Abi {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
        }
    }

    /// Its name in a profile.
    const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::I386 => "SCMP_ARCH_X86",
        }
    }
}

/// Compiles a profile for the machine that this build is for.
///
/// # Errors
/// [`SeccompError`]; a profile is never compiled in part.
pub fn compile(profile: &spec::Seccomp) -> Result<Program, SeccompError> {
    let Some(architecture) = Architecture::native() else {
        return Err(SeccompError::Unsupported(format!(
            "the architecture {}",
            std::env::consts::ARCH
        )));
    };
    let resolved = resolve::resolve(profile, architecture)?;
    let instructions = generate::program(&resolved, architecture);
    if instructions.len() > INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong(instructions.len()));
    }
    Ok(Program {
        code: assembler::bytes(&instructions),
        flags: resolved.flags,
        unknown: resolved.unknown,
    })
}

#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;
