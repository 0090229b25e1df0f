//! File systems whose changes are not all made on this machine, so that inotify does not tell them.

use std::path::Path;

/// The kinds by what `statfs` tells of them; the numbers are those of the kernel's `magic.h`, or of the
/// file system's own source.
const SHARED: &[(u32, &str)] = &[
    (0x0000_6969, "it lies on NFS"),
    (0x0000_517b, "it lies on SMB"),
    (0xff53_4d42, "it lies on CIFS"),
    (0xfe53_4d42, "it lies on SMB"),
    (0x6573_5546, "it lies on FUSE"),
    (0x0102_1997, "it lies on 9p"),
    (0x00c3_6400, "it lies on Ceph"),
    (0x5346_414f, "it lies on AFS"),
    (0x6b41_4653, "it lies on AFS"),
    (0x0bd0_0bd0, "it lies on Lustre"),
    (0x4750_4653, "it lies on GPFS"),
    (0x1983_0326, "it lies on BeeGFS"),
    (0x2003_0528, "it lies on OrangeFS"),
    (0x7375_7245, "it lies on Coda"),
    (0x7461_636f, "it lies on OCFS2"),
    (0x0116_1970, "it lies on GFS2"),
    (0x786f_4256, "it lies on a shared folder of VirtualBox"),
    (0xbacb_acbc, "it lies on a shared folder of VMware"),
];

/// Why changes under this directory are not all told by inotify, as a clause such as `it lies on NFS`;
/// `None` for local file systems. For a directory that is not there, that of what would hold it.
pub fn needs_polling(dir: &Path) -> Option<&'static str> {
    let dir = std::path::absolute(dir).ok()?;
    let told = dir.ancestors().find_map(|dir| rustix::fs::statfs(dir).ok())?;
    kind(told.f_type)
}

/// The number has the width and the sign that the machine gives it; it is 32 bits in all of them.
fn kind(number: impl Into<i128>) -> Option<&'static str> {
    let number = number.into() & i128::from(u32::MAX);
    SHARED.iter().find(|(magic, _)| i128::from(*magic) == number).map(|(_, clause)| *clause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_change_is_told_apart_from_what_is_local() {
        const EXT4: i64 = 0xef53;
        const TMPFS: i64 = 0x0102_1994;
        assert_eq!([kind(EXT4), kind(TMPFS)], [None, None]);
        assert_eq!(kind(0x6969_i64), Some("it lies on NFS"));
        assert_eq!(kind(0x6573_5546_i64), Some("it lies on FUSE"));
        // As the machine gives it where a word has 32 bits.
        assert_eq!(kind(0xff53_4d42_u32 as i32), Some("it lies on CIFS"));
    }

    #[test]
    fn a_directory_that_is_not_there_is_where_it_would_be() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(needs_polling(&dir.path().join("absent/deeper")), needs_polling(dir.path()));
        // No Linux machine is without it, and it is the kernel's own.
        assert_eq!(needs_polling(Path::new("/proc")), None);
    }
}
