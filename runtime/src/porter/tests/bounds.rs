//! Archives that are larger than they may be, SKILL-10.

use super::*;

/// A file of this many zero bytes.
fn zeros(name: &str, bytes: usize) -> Item {
    Item { content: vec![0; bytes], ..plain(name, "") }
}

#[test]
fn the_bounds_hold_for_every_format_and_leave_nothing() {
    let many: Vec<_> = (0..50).map(|number| plain(&format!("f{number}"), "x")).collect();
    let large = [zeros("a", 600_000), zeros("b", 600_000)];
    for (what, archive) in [("zip", zip(&many)), ("tar", tar(&many)), ("gzip", gzip(&tar(&many)))] {
        let ground = Ground::new();
        let few = Unpack { entries_max: 49, ..skill("s") };
        let refusal = ground.unpack(&archive, &few).expect_err(what).to_string();
        assert!(refusal.contains("more than 49 members"), "{what}: {refusal}");
        assert!(ground.tree().is_empty(), "{what}");
        ground.unpack(&archive, &Unpack { entries_max: 50, ..skill("s") }).expect("the control");
    }
    for (what, archive) in
        [("zip", zip(&large)), ("tar", tar(&large)), ("gzip", gzip(&tar(&large)))]
    {
        let ground = Ground::new();
        let small = Unpack { bytes_max: 1_000_000, ..skill("s") };
        let refusal = ground.unpack(&archive, &small).expect_err(what).to_string();
        assert!(refusal.contains("more than 1000000 bytes"), "{what}: {refusal}");
        assert!(ground.tree().is_empty(), "{what}");
        let enough = Unpack { bytes_max: 1_200_000, ..skill("s") };
        ground.unpack(&archive, &enough).expect("the control");
    }
}

#[test]
fn a_bomb_ends_at_the_bound_and_not_at_its_size() {
    // 400 MiB of zeros, 400 kB packed.
    let bomb = zip(&[zeros("a", 400 << 20)]);
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let ground = Ground::new();
    let small = Unpack { bytes_max: 1 << 20, ..skill("s") };
    ground.unpack(&bomb, &small).expect_err("a bomb");
    assert!(ground.tree().is_empty());
}

#[test]
fn what_is_passed_over_counts_as_well() {
    // A link with content: no file comes of it, but it is decoded.
    let link = Item { content: vec![0; 8 << 20], ..item("s/l", "", 0o777) };
    let mut tarred = tar_member(&link, b'2', "x");
    tarred.extend(tar_member(&plain("s/a", "x"), b'0', ""));
    tarred.extend([0; 1024]);
    let small = Unpack { bytes_max: 1 << 20, entries_max: 10, ..skill("s") };
    let ground = Ground::new();
    let refusal = ground.unpack(&gzip(&tarred), &small).expect_err("decoded in vain").to_string();
    assert!(refusal.contains("bytes"), "{refusal}");
    // A name as long as the archive.
    let name = Item { content: vec![b'a'; 8 << 20], ..item("././@LongLink", "", 0) };
    let mut tarred = tar_member(&name, b'L', "");
    tarred.extend(tar_member(&plain("s/a", "x"), b'0', ""));
    tarred.extend([0; 1024]);
    ground.unpack(&gzip(&tarred), &small).expect_err("a name of 8 MiB");
    assert!(ground.tree().is_empty());
}

#[test]
fn an_xz_archive_that_wants_too_much_memory_is_refused() {
    // A dictionary of 1.5 GiB announced in the block header.
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut to = lzma_rust2::XzWriter::new(Vec::new(), options).expect("a writer");
    std::io::Write::write_all(&mut to, &tar(&[plain("s/a", "x")])).expect("compressed");
    let mut archive = to.finish().expect("compressed");
    // Stream header of 12 bytes; block header: size, flags, filter 0x21, its length, dictionary.
    assert_eq!(&archive[14..16], &[0x21, 1], "the header is another: {:?}", &archive[12..24]);
    archive[16] = 39;
    let length = (usize::from(archive[12]) + 1) * 4;
    let mut crc = flate2::Crc::new();
    crc.update(&archive[12..12 + length - 4]);
    archive[12 + length - 4..12 + length].copy_from_slice(&crc.sum().to_le_bytes());
    let ground = Ground::new();
    ground.unpack(&archive, &skill("s")).expect_err("too much memory");
    assert!(ground.tree().is_empty());
}
