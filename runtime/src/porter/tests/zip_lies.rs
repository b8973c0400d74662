//! Zip archives that two readers would read differently, or that are larger than they look.

use super::*;

#[test]
fn what_readers_could_disagree_about_is_refused() {
    let good = || (plain("a", "hello hello hello"), Lie::default());
    let lie = |lie: Lie| (plain("b", "world world world"), lie);
    #[rustfmt::skip]
    let cases = [
        ("another name in the local header", lie(Lie { local_name: Some("c"), ..Lie::default() })),
        ("another size in the local header", lie(Lie { local_size: Some(3), ..Lie::default() })),
        ("a size that is too small",         lie(Lie { size: Some(3), ..Lie::default() })),
        ("a size that is too large",         lie(Lie { size: Some(3000), ..Lie::default() })),
        ("another checksum",                 lie(Lie { crc: Some(1), ..Lie::default() })),
        ("encrypted",                        lie(Lie { flags: 1, ..Lie::default() })),
        ("an unknown method",                lie(Lie { method: Some(99), ..Lie::default() })),
        ("the same bytes twice",             lie(Lie { points_to_first: true, local_name: Some("b"), ..Lie::default() })),
        ("the same name twice",              (plain("a", "other"), Lie::default())),
    ];
    for (what, second) in cases {
        let ground = Ground::new();
        let archive = lying_zip(&[good(), second]);
        let refusal = ground.unpack(&archive, &skill("s")).expect_err(what);
        assert!(ground.tree().is_empty(), "{what}: {refusal}: {:?}", ground.tree());
    }
    // The control: without a lie the same is unpacked.
    let ground = Ground::new();
    ground.unpack(&lying_zip(&[good(), lie(Lie::default())]), &skill("s")).expect("good");
    assert_eq!(ground.tree(), ["s/", "s/a", "s/b"]);
}

#[test]
fn a_directory_that_announces_more_than_there_is_takes_no_memory() {
    let mut archive = zip(&[plain("a", "x")]);
    let end = archive.len() - 22;
    // 65,535 entries; a directory of 4 GiB.
    archive[end + 8..end + 12].copy_from_slice(&[0xff; 4]);
    archive[end + 12..end + 16].copy_from_slice(&[0xff; 4]);
    let ground = Ground::new();
    ground.unpack(&archive, &skill("s")).expect_err("it lies");
    assert!(ground.tree().is_empty());
}

#[test]
fn names_that_are_not_utf_8_have_one_reading() {
    let odd = Item { name: vec![b's', b'/', 0x81, 0xff], ..plain("", "x") };
    let ground = Ground::new();
    // Code page 437, as the format says, and never bytes that a terminal would act on.
    ground.unpack(&zip(&[odd.clone(), plain("s/b", "")]), &skill("s")).expect("zip");
    assert_eq!(ground.tree().len(), 3, "{:?}", ground.tree());
    ground.unpack(&tar(&[odd]), &skill("t")).expect_err("tar says nothing about it");
}
