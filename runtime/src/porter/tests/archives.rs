//! What becomes of archives as people make them, and of those that are damaged.

use std::fs;
use std::io::Write as _;

use super::*;

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    to.write_all(bytes).expect("compressed");
    to.finish().expect("compressed")
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut to = lzma_rust2::XzWriter::new(Vec::new(), options).expect("a writer");
    to.write_all(bytes).expect("compressed");
    to.finish().expect("compressed")
}

fn a_skill() -> Vec<Item> {
    vec![
        item("my-skill/", "", 0o040_755),
        plain("my-skill/SKILL.md", "# Skill\n"),
        item("my-skill/scripts/run.sh", "#!/bin/sh\n", 0o100_755),
    ]
}

const A_SKILL: [&str; 5] =
    ["s/", "s/SKILL.md", "s/scripts/", "s/scripts/run.sh", "s/scripts/run.sh mode 755"];

fn check_skill(ground: &Ground, what: &str) {
    assert_eq!(ground.tree(), A_SKILL[..4], "{what}");
    assert_eq!(fs::read_to_string(ground.path("s/SKILL.md")).expect(what), "# Skill\n");
    // SKILL-9.
    assert_eq!(ground.mode("s/scripts/run.sh"), 0o755, "{what}");
    assert_eq!(ground.mode("s/SKILL.md"), 0o644, "{what}");
    assert_eq!((ground.mode("s"), ground.mode("s/scripts")), (0o700, 0o700), "{what}");
}

#[test]
fn every_format_is_known_by_its_content_and_gives_the_same() {
    // SKILL-5.
    let tar = tar(&a_skill());
    let empty_front = [b"#!/bin/sh\nexit\n".to_vec(), zip(&a_skill())].concat();
    let archives = [
        ("zip", zip(&a_skill())),
        ("zip behind something else", empty_front),
        ("tar", tar.clone()),
        ("tar.gz", gzip(&tar)),
        ("tar.gz of two parts", [gzip(&tar[..700]), gzip(&tar[700..])].concat()),
        ("tar.bz2", bzip2(&tar)),
        ("tar.xz", xz(&tar)),
    ];
    for (what, archive) in archives {
        let ground = Ground::new();
        let unpacked = ground.unpack(&archive, &skill("s")).expect(what);
        let want = Unpacked { files: 2, directories: 1, bytes: 18, skipped: 0, replaced: false };
        assert_eq!(unpacked, want, "{what}");
        check_skill(&ground, what);
    }
}

#[test]
fn what_a_library_writes_as_a_stream_can_be_read() {
    // Data descriptors: sizes come after the content.
    let mut writer = ::zip::ZipWriter::new_stream(Vec::new());
    for found in a_skill().iter().skip(1) {
        let options = ::zip::write::SimpleFileOptions::default().unix_permissions(found.mode);
        writer.start_file(String::from_utf8_lossy(&found.name), options).expect("started");
        writer.write_all(&found.content).expect("written");
    }
    let archive = writer.finish().expect("finished").into_inner();
    let ground = Ground::new();
    ground.unpack(&archive, &skill("s")).expect("a stream");
    check_skill(&ground, "stream");
}

#[test]
fn sizes_in_64_bits_and_after_the_content_are_understood() {
    for lie in [Lie { zip64: true, ..Lie::default() }, Lie { descriptor: true, ..Lie::default() }] {
        let items: Vec<_> = a_skill().into_iter().skip(1).map(|found| (found, lie)).collect();
        let ground = Ground::new();
        ground.unpack(&lying_zip(&items), &skill("s")).unwrap_or_else(|e| panic!("{lie:?}: {e}"));
        check_skill(&ground, &format!("{lie:?}"));
    }
}

#[test]
fn a_damaged_archive_leaves_what_was_there_as_it_was() {
    // SKILL-3, SKILL-4.
    let (zipped, tarred) = (zip(&a_skill()), tar(&a_skill()));
    let packed = gzip(&tarred);
    let mut flipped = zipped.clone();
    flipped[30 + "my-skill/".len() + 2 + 30 + "my-skill/SKILL.md".len() + 3] ^= 0x40;
    let archives = [
        ("nothing", Vec::new()),
        ("text", b"this is not an archive".repeat(40)),
        ("short text", b"no archive".to_vec()),
        ("zip cut in its directory", zipped[..zipped.len() - 30].to_vec()),
        ("zip cut in a member", zipped[..60].to_vec()),
        ("zip with a bit flipped", flipped),
        ("tar cut in a member", tarred[..512 + 512 + 4].to_vec()),
        ("tar cut in a header", tarred[..512 + 300].to_vec()),
        ("gzip cut", packed[..packed.len() - 12].to_vec()),
        ("gzip of nothing", gzip(b"")[..12].to_vec()),
        ("xz cut", xz(&tarred)[..80].to_vec()),
        ("bzip2 cut", bzip2(&tarred)[..40].to_vec()),
    ];
    for (what, archive) in archives {
        let ground = Ground::new();
        fs::create_dir(ground.path("s")).expect("made");
        fs::write(ground.path("s/old"), "old").expect("written");
        let refusal = ground.unpack(&archive, &skill("s")).expect_err(what);
        assert_eq!(ground.tree(), ["s/", "s/old"], "{what}: {refusal}");
        assert!(!refusal.to_string().contains("Skill"), "INV-12: {refusal}");
    }
}

#[test]
fn a_name_that_leads_elsewhere_refuses_the_whole_archive() {
    // SKILL-6.
    for name in ["../out", "/tmp/porter-out", "a/../../out", "a\\..\\..\\out", "C:\\out"] {
        for archive in
            [zip(&[plain("a", "1"), plain(name, "2")]), tar(&[plain("a", "1"), plain(name, "2")])]
        {
            let ground = Ground::new();
            let refusal = ground.unpack(&archive, &skill("s")).expect_err(name);
            assert!(matches!(refusal, Refusal::Member { .. }), "{name}: {refusal}");
            assert!(ground.tree().is_empty(), "{name}: {:?}", ground.tree());
            assert!(!ground.outside("out").exists());
        }
    }
}

#[test]
fn a_long_name_of_either_kind_is_screened_and_used_as_a_whole() {
    // SKILL-6: the short name in the header says nothing.
    let long = format!("deep/{}/file", "d".repeat(120));
    let escape = format!("deep/{}/../../../../out", "d".repeat(120));
    let gnu = |name: &str| {
        let mut bytes = tar_member(&item("././@LongLink", &format!("{name}\0"), 0), b'L', "");
        bytes.extend(tar_member(&plain("deep/short", "x"), b'0', ""));
        bytes.extend([0; 1024]);
        bytes
    };
    let pax = |name: &str| {
        let record = |length: usize| format!("{length} path={name}\n");
        let length = (0..400).find(|length| record(*length).len() == *length).expect("a length");
        let mut bytes = tar_member(&item("pax", &record(length), 0o644), b'x', "");
        bytes.extend(tar_member(&plain("deep/short", "x"), b'0', ""));
        bytes.extend([0; 1024]);
        bytes
    };
    for archive in [gnu(&long), pax(&long)] {
        let ground = Ground::new();
        ground.unpack(&archive, &Unpack { wrapper: Wrapper::Keep, ..skill("s") }).expect("long");
        assert!(ground.path(&format!("s/{long}")).is_file(), "{:?}", ground.tree());
    }
    for archive in [gnu(&escape), pax(&escape)] {
        let ground = Ground::new();
        let refusal = ground.unpack(&archive, &skill("s")).expect_err("escapes");
        assert!(refusal.to_string().contains("`..`"), "{refusal}");
    }
}

#[test]
fn what_is_neither_file_nor_directory_is_passed_over() {
    // SKILL-7.
    let mut tarred = tar_member(&plain("s/file", "x"), b'0', "");
    for (name, kind) in
        [("link", b'2'), ("hard", b'1'), ("char", b'3'), ("block", b'4'), ("fifo", b'6')]
    {
        tarred.extend(tar_member(&item(&format!("s/{name}"), "", 0o777), kind, "/etc/passwd"));
    }
    tarred.extend([0; 1024]);
    let ground = Ground::new();
    let unpacked = ground.unpack(&tarred, &skill("s")).expect("tar");
    assert_eq!((unpacked.files, unpacked.skipped), (1, 5));
    assert_eq!(ground.tree(), ["s/", "s/file"]);

    let types = [0o120_777, 0o020_666, 0o060_666, 0o010_666, 0o140_666];
    for system in [3, 19, 0, 10] {
        let mut items = vec![plain("s/file", "x")];
        for (number, mode) in types.into_iter().enumerate() {
            let special = item(&format!("s/{number}"), "/etc/passwd", mode);
            items.push(Item { system, ..special });
        }
        let ground = Ground::new();
        let unpacked = ground.unpack(&zip(&items), &skill("s")).expect("zip");
        // Only a Unix host can have meant a type.
        let special = if matches!(system, 3 | 19) { 5 } else { 0 };
        assert_eq!((unpacked.skipped, unpacked.files), (special, 6 - special), "system {system}");
        assert!(ground.tree().iter().all(|entry| !entry.contains("->")), "{:?}", ground.tree());
    }
}

#[test]
fn modes_keep_one_bit_of_meaning() {
    // SKILL-9.
    #[rustfmt::skip]
    let cases = [
        (0o100_644, 0o644), (0o100_600, 0o644), (0o100_666, 0o644), (0o100_000, 0o644),
        (0o100_755, 0o755), (0o100_100, 0o755), (0o100_001, 0o755), (0o104_755, 0o755),
        (0o107_777, 0o755), (0o102_644, 0o644),
    ];
    let items: Vec<_> =
        cases.iter().map(|(mode, _)| item(&format!("f{mode:o}"), "x", *mode)).collect();
    for archive in [zip(&items), tar(&items)] {
        let ground = Ground::new();
        ground.unpack(&archive, &skill("s")).expect("unpacked");
        for (mode, want) in cases {
            assert_eq!(ground.mode(&format!("s/f{mode:o}")), want, "{mode:o}");
        }
        let all = Unpack { executables: Executables::All, ..skill("t") };
        ground.unpack(&archive, &all).expect("unpacked");
        assert_eq!(ground.mode("t/f100644"), 0o755);
    }
    // Another host's mode means nothing.
    let foreign = Item { system: 0, ..item("f", "x", 0o755) };
    let ground = Ground::new();
    ground.unpack(&zip(&[foreign, plain("g", "")]), &skill("s")).expect("unpacked");
    assert_eq!(ground.mode("s/f"), 0o644);
}

#[test]
fn a_sparse_member_is_refused() {
    let old = [tar_member(&plain("s/x", ""), b'S', ""), vec![0; 1024]].concat();
    let record = "30 GNU.sparse.realsize=1048576\n";
    let record = format!("{} GNU.sparse.realsize=1048576\n", record.len());
    let mut new = tar_member(&item("pax", &record, 0o644), b'x', "");
    new.extend(tar_member(&plain("s/x", "abc"), b'0', ""));
    new.extend([0; 1024]);
    for archive in [old, new] {
        let ground = Ground::new();
        let refusal = ground.unpack(&archive, &skill("s")).expect_err("sparse");
        assert!(matches!(refusal, Refusal::Archive { .. }), "{refusal}");
        assert!(ground.tree().is_empty());
    }
}

#[test]
fn members_that_contradict_each_other_are_refused_or_the_later_one_counts() {
    // A tar archive may be appended to.
    let ground = Ground::new();
    let archive = tar(&[plain("s/a", "old"), plain("s/b", ""), plain("s/a", "new")]);
    let unpacked = ground.unpack(&archive, &skill("s")).expect("appended");
    assert_eq!(fs::read_to_string(ground.path("s/a")).expect("a"), "new");
    assert_eq!(unpacked.files, 2);
    // A file cannot be a directory.
    for items in [[plain("t", ""), plain("t/a", "")], [plain("u/t/a", ""), plain("u/t", "")]] {
        let ground = Ground::new();
        ground.unpack(&tar(&items), &skill("s")).expect_err("a file and a directory");
        assert!(ground.tree().is_empty(), "{:?}", ground.tree());
    }
}
