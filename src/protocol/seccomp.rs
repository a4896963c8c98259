//! A seccomp profile of the administrator's, in plain values.

use serde::{Deserialize, Serialize};

/// What happens to system calls, by their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompProfile {
    /// For calls without a rule that holds: `SECCOMP_RET_*` with its data.
    pub default_action: u32,
    pub rules: Vec<SeccompRule>,
}

/// What happens to some calls if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompRule {
    /// Those that this machine does not have are left out.
    pub names: Vec<String>,
    pub action: u32,
    pub conditions: Vec<SeccompCondition>,
}

/// Compares an argument, unsigned and with all 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompCondition {
    /// 0 to 5.
    pub argument: u8,
    pub test: SeccompTest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompTest {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    /// The bits of the mask are those of the value.
    Masked {
        mask: u64,
        value: u64,
    },
}
