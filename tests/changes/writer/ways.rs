//! How people and programs put a version where it belongs, and how it gets spoilt there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

use super::{Lies, Place, Plot};
use crate::changes::{
    point, replace,
    shelf::{Random, stored_dir, stored_file},
};

impl Plot {
    /// Written beside, then renamed into place.
    pub(super) fn rename_directory(&mut self, version: u64, content: u32, random: &mut Random) {
        let name = self.name("");
        let staging = match random.below(4) {
            0 => self.dir().join(format!("{version}.tmp")),
            1 => self.dir().join(format!(".{version}.partial")),
            2 => self.dir().join(format!(".{version}.{name}aQ")),
            _ => self.store.join(format!("{}-{name}", self.name)),
        };
        let (dir, hard) = (staging.clone(), random.one_in(4));
        let (stored, bytes) = (stored_file(&self.store, content), self.shelf.get(content).bytes.clone());
        self.step(format!("{}: staged {content} for {version}", self.name), Vec::new(), move || {
            fs::create_dir(&dir)?;
            let file = dir.join("model.pt");
            if hard { fs::hard_link(stored, file) } else { fs::write(file, bytes) }
        });
        self.clear(version, random);
        let place = match hard {
            true => Place { file: Lies::Linked(content), ..Place::EMPTY },
            false => Place::own(content),
        };
        let to = self.version_dir(version);
        self.becomes(version, Some(place), &format!("{content} renamed into place"), move || {
            fs::rename(staging, to)
        });
    }

    /// As rsync does it: a hidden file beside, renamed over the old one.
    pub(super) fn rename_file(&mut self, version: u64, content: u32, random: &mut Random) {
        self.own_directory(version, random);
        let dir = self.version_dir(version);
        let staged = dir.join(random.pick(&[".model.pt.x7Qa2B", "model.pt.tmp", "model.pt~", "4913"]));
        let (path, bytes) = (staged.clone(), self.shelf.get(content).bytes.clone());
        self.step(format!("{}/{version}: {content} beside", self.name), Vec::new(), move || {
            fs::write(path, bytes)
        });
        let file = dir.join("model.pt");
        self.becomes(version, Some(Place::own(content)), &format!("{content} renamed over"), move || {
            fs::rename(staged, file)
        });
    }

    /// As cp does it: truncated, then written piece by piece, perhaps the last bytes one by one.
    pub(super) fn copy(&mut self, version: u64, content: u32, random: &mut Random) {
        self.own_file(version, random);
        let file = self.version_dir(version).join("model.pt");
        let bytes = self.shelf.get(content).bytes.clone();
        let tail = if random.one_in(2) { 24 } else { 0 };
        let (body, count) = (bytes.len() - tail, 1 + random.index(4));
        let mut ends: Vec<usize> = (1..=count).map(|piece| body * piece / count).collect();
        ends.extend(body + 1..=bytes.len());
        let unfinished = Place { file: Lies::Own(None), ..Place::EMPTY };
        let path = file.clone();
        self.becomes(version, Some(unfinished), "cut to nothing", move || File::create(path).map(drop));
        let mut begin = 0;
        for end in ends {
            let (path, piece) = (file.clone(), bytes[begin..end].to_vec());
            let append = move || OpenOptions::new().append(true).open(path)?.write_all(&piece);
            let place = if end == bytes.len() { Place::own(content) } else { unfinished };
            self.becomes(version, Some(place), &format!("{content} up to {end}"), append);
            begin = end;
        }
    }

    /// The old bytes replaced by others where they lie.
    pub(super) fn overwrite(&mut self, version: u64, content: u32, random: &mut Random) {
        if self.own_file(version, random) == Lies::Nothing {
            return self.copy(version, content, random);
        }
        let file = self.version_dir(version).join("model.pt");
        let bytes = self.shelf.get(content).bytes.clone();
        let (path, half) = (file.clone(), bytes[..bytes.len() / 2].to_vec());
        let unfinished = Place { file: Lies::Own(None), ..Place::EMPTY };
        self.becomes(version, Some(unfinished), &format!("half of {content} written over it"), move || {
            write_at(&path, 0, &half)
        });
        self.becomes(
            version,
            Some(Place::own(content)),
            &format!("all of {content} written over it"),
            move || {
                write_at(&file, bytes.len() / 2, &bytes[bytes.len() / 2..])?;
                OpenOptions::new().write(true).open(file)?.set_len(bytes.len() as u64)
            },
        );
    }

    /// Some weights replaced by noise; perhaps put right again.
    pub(super) fn corrupt(&mut self, version: u64, random: &mut Random) {
        let Some(Place { link: false, file: Lies::Own(Some(content)), manifest }) =
            self.places.get(&version).copied()
        else {
            return;
        };
        let file = self.version_dir(version).join("model.pt");
        let bytes = self.shelf.get(content).bytes.clone();
        let middle = bytes.len() / 2;
        let noise: Vec<u8> = (0..64).map(|_| random.next().to_le_bytes()[0]).collect();
        let corrupt = Place { link: false, file: Lies::Own(None), manifest };
        let path = file.clone();
        self.becomes(version, Some(corrupt), "corrupted", move || write_at(&path, middle, &noise));
        if random.one_in(2) {
            let right = Place { file: Lies::Own(Some(content)), ..corrupt };
            self.becomes(version, Some(right), "put right", move || {
                write_at(&file, middle, &bytes[middle..middle + 64])
            });
        }
    }

    pub(super) fn truncate(&mut self, version: u64, random: &mut Random) {
        let Some(place @ Place { link: false, file: Lies::Own(Some(content)), .. }) =
            self.places.get(&version).copied()
        else {
            return;
        };
        let file = self.version_dir(version).join("model.pt");
        let to = random.below(self.shelf.get(content).bytes.len() as u64);
        let place = Place { file: Lies::Own(None), ..place };
        self.becomes(version, Some(place), &format!("cut to {to} bytes"), move || {
            OpenOptions::new().write(true).open(file)?.set_len(to)
        });
    }

    /// The version is a link to a directory, which is pointed elsewhere.
    pub(super) fn link_directory(&mut self, version: u64, content: u32, random: &mut Random) {
        let atomic = random.one_in(2);
        if !atomic || self.places.get(&version).is_some_and(|place| !place.link) {
            self.clear(version, random);
        }
        let (link, target) = (self.version_dir(version), stored_dir(&self.store, content));
        let place = Place { link: true, file: Lies::Linked(content), manifest: None };
        self.becomes(version, Some(place), &format!("linked to the directory of {content}"), move || {
            point(&link, &target);
            Ok(())
        });
    }

    pub(super) fn link_file(&mut self, version: u64, content: u32, random: &mut Random) {
        let there = self.own_directory(version, random).file != Lies::Nothing;
        let (link, target) = (self.version_dir(version).join("model.pt"), stored_file(&self.store, content));
        if there && random.one_in(2) {
            let file = link.clone();
            self.becomes(version, Some(Place::EMPTY), "its file unlinked", move || fs::remove_file(file));
        }
        let place = Place { file: Lies::Linked(content), ..Place::EMPTY };
        self.becomes(version, Some(place), &format!("its file linked to {content}"), move || {
            point(&link, &target);
            Ok(())
        });
    }

    /// The manifest first: of other bytes, or cut; then the file; then the right manifest.
    pub(super) fn with_manifest(&mut self, version: u64, content: u32, random: &mut Random) {
        self.clear(version, random);
        let dir = self.version_dir(version);
        let right = format!("sha256:\n  model.pt: {}\n", self.shelf.get(content).sha256);
        let wrong = match random.one_in(2) {
            true => format!("sha256:\n  model.pt: {}\n", "0".repeat(64)),
            false => right[..right.len() / 2].to_owned(),
        };
        let place = Place { manifest: Some(None), ..Place::EMPTY };
        let (manifest, path) = (dir.join("manifest.yaml"), dir.join("model.pt"));
        let bytes = self.shelf.get(content).bytes.clone();
        self.becomes(version, Some(Place::EMPTY), "made", move || fs::create_dir(dir));
        let file = manifest.clone();
        self.becomes(version, Some(place), "a wrong manifest", move || fs::write(file, wrong));
        let place = Place { file: Lies::Own(Some(content)), ..place };
        self.becomes(version, Some(place), &format!("{content} copied"), move || fs::write(path, bytes));
        let (place, atomic) = (Place { manifest: Some(Some(content)), ..place }, random.one_in(2));
        self.becomes(version, Some(place), &format!("the manifest of {content}"), move || {
            if atomic {
                replace(&manifest, right)
            } else {
                fs::write(&manifest, right)?
            }
            Ok(())
        });
    }
}

fn write_at(path: &Path, offset: usize, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(offset as u64))?;
    file.write_all(bytes)
}
