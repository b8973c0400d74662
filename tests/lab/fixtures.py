"""What the real clients fetch: one tiny package of each kind, a git repository and keys for ssh.

Usage: fixtures.py DIRECTORY. Makes `www/HOST/…`, `home/` and `ssh/` there. Needs git, dpkg-deb and
dropbear; the packages are made by hand, so that no build tool is needed.
"""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def tar(files):
    """A gzipped archive of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def python(www):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as wheel:
        info = "labpkg-1.0.dist-info"
        wheel.writestr("labpkg.py", "WORD = 'from the lab'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: labpkg\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"labpkg.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    data, name = out.getvalue(), "labpkg-1.0-py3-none-any.whl"
    digest = hashlib.sha256(data).hexdigest()
    write(f"{www}/pypi.example.test/files/{name}", data)
    page = f'<!DOCTYPE html><html><body><a href="/files/{name}#sha256={digest}">{name}</a></body></html>'
    write(f"{www}/pypi.example.test/simple/labpkg/index.html", page)


def node(www):
    manifest = {"name": "labpkg", "version": "1.0.0", "main": "index.js"}
    data = tar({"package/package.json": json.dumps(manifest), "package/index.js": "module.exports = 'from the lab'\n"})
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    url = "https://npm.example.test/labpkg/-/labpkg-1.0.0.tgz"
    dist = {"tarball": url, "integrity": integrity, "shasum": hashlib.sha1(data).hexdigest()}
    versions = {"1.0.0": {**manifest, "dist": dist}}
    packument = {"name": "labpkg", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
    write(f"{www}/npm.example.test/labpkg/index.html", json.dumps(packument))
    write(f"{www}/npm.example.test/labpkg/-/labpkg-1.0.0.tgz", data)


def rust(www):
    manifest = '[package]\nname = "labcrate"\nversion = "1.0.0"\nedition = "2021"\n'
    data = tar({"labcrate-1.0.0/Cargo.toml": manifest,
                "labcrate-1.0.0/src/lib.rs": "pub const WORD: &str = \"from the lab\";\n"})
    index = {"name": "labcrate", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False,
             "cksum": hashlib.sha256(data).hexdigest()}
    base = f"{www}/crates.example.test"
    write(f"{base}/index/config.json", json.dumps({"dl": "https://crates.example.test/dl/{crate}/{version}/download"}))
    write(f"{base}/index/la/bc/labcrate", json.dumps(index) + "\n")
    write(f"{base}/dl/labcrate/1.0.0/download", data)


def debian(www, directory):
    tree = f"{directory}/deb"
    write(f"{tree}/DEBIAN/control", "Package: labdeb\nVersion: 1.0\nArchitecture: all\n"
          "Maintainer: lab <lab@example.test>\nDescription: from the lab\n")
    write(f"{tree}/usr/share/labdeb/word", "from the lab\n")
    os.chmod(f"{tree}/DEBIAN", 0o755)
    repository = f"{www}/deb.example.test/repo"
    os.makedirs(repository)
    deb = f"{repository}/labdeb.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, **QUIET)
    with open(deb, "rb") as file:
        data = file.read()
    packages = ("Package: labdeb\nVersion: 1.0\nArchitecture: all\nMaintainer: lab <lab@example.test>\n"
                f"Filename: ./labdeb.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
                "Description: from the lab\n\n")
    write(f"{repository}/Packages", packages)
    digest = hashlib.sha256(packages.encode()).hexdigest()
    write(f"{repository}/Release", f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {len(packages)} Packages\n")


def git(www, directory):
    def run(*words, at=None):
        identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.test", "-c", "safe.directory=*"]
        subprocess.run(["git", *identity, *words], cwd=at, check=True, **QUIET)

    write(f"{directory}/tree/word", "from the lab\n")
    run("init", "-b", "main", at=f"{directory}/tree")
    run("add", "word", at=f"{directory}/tree")
    run("commit", "-m", "first", at=f"{directory}/tree")
    for bare in (f"{www}/git.example.test/git/lab.git", f"{directory}/home/lab.git"):
        os.makedirs(os.path.dirname(bare), exist_ok=True)
        run("clone", "--bare", f"{directory}/tree", bare)


def ssh(directory):
    keys = f"{directory}/ssh"
    os.makedirs(keys)
    for name in ("host", "client"):
        subprocess.run(["dropbearkey", "-t", "ed25519", "-f", f"{keys}/{name}.key"], check=True, **QUIET)
    public = {}
    for name in ("host", "client"):
        said = subprocess.run(["dropbearkey", "-y", "-f", f"{keys}/{name}.key"], check=True, capture_output=True)
        public[name] = next(line for line in said.stdout.decode().splitlines() if line.startswith("ssh-"))
    with open(f"{keys}/client", "wb") as out:
        subprocess.run(["dropbearconvert", "dropbear", "openssh", f"{keys}/client.key", "/dev/stdout"],
                       check=True, stdout=out, stderr=subprocess.DEVNULL)
    write(f"{keys}/known_hosts", f"ssh.example.test {public['host']}\n")
    write(f"{directory}/home/.ssh/authorized_keys", public["client"] + "\n")
    for path, mode in ((".ssh", 0o700), (".ssh/authorized_keys", 0o600)):
        os.chmod(f"{directory}/home/{path}", mode)


def main(directory):
    www = f"{directory}/www"
    python(www)
    node(www)
    rust(www)
    debian(www, directory)
    git(www, directory)
    ssh(directory)


if __name__ == "__main__":
    main(sys.argv[1])
