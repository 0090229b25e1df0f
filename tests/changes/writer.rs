//! The ways to write a repository, careful and careless, in steps small enough for a server to see each.

mod ways;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    shelf::{Random, Shelf},
    world::{Change, Config, Disk},
};

type Act = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// One thing that happens on disk, and what it makes of the model.
pub(super) struct Step {
    pub(super) says: String,
    pub(super) changes: Vec<Change>,
    pub(super) act: Act,
}

/// What lies at `model.pt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    Nothing,
    /// A file of its own: a content, or none.
    Own(Option<u32>),
    /// A link into the store, where nothing may be written.
    Linked(u32),
}

/// A version's directory.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The directory itself is a link into the store.
    link: bool,
    file: Lies,
    /// There is a manifest, for this content or for none.
    manifest: Option<Option<u32>>,
}

impl Place {
    const EMPTY: Self = Self { link: false, file: Lies::Nothing, manifest: None };

    fn own(content: u32) -> Self {
        Self { file: Lies::Own(Some(content)), ..Self::EMPTY }
    }

    /// What can be served from it.
    fn content(self) -> Option<u32> {
        let content = match self.file {
            Lies::Nothing => None,
            Lies::Own(content) => content,
            Lies::Linked(content) => Some(content),
        };
        content.filter(|content| self.manifest.is_none_or(|manifest| manifest == Some(*content)))
    }
}

/// What the writer may do to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Version 1 is never touched.
    Anchored,
    /// The same, and `config.yaml` changes.
    Configured,
    /// The same, by a configuration that always asks for all versions.
    All,
    /// All versions, and the model itself, may go.
    Free,
    /// A link to a directory that is swapped as a whole.
    Swapped,
}

/// A model as the writer knows it.
pub(super) struct Plot {
    pub(super) name: &'static str,
    pub(super) care: Care,
    root: PathBuf,
    store: PathBuf,
    shelf: Arc<Shelf>,
    config: Config,
    /// What stands in its configuration beside the versions.
    extra: &'static str,
    places: BTreeMap<u64, Place>,
    there: bool,
    /// Numbers for names that are used once.
    names: u64,
    steps: Vec<Step>,
}

impl Plot {
    /// Writes a model with these versions.
    pub(super) fn new(
        (name, care, extra): (&'static str, Care, &'static str),
        (root, store): (&Path, &Path),
        shelf: &Arc<Shelf>,
        versions: &[(u64, u32)],
    ) -> Self {
        let config = if care == Care::All { Config::All } else { Config::Latest(1) };
        let places = versions.iter().map(|(version, content)| (*version, Place::own(*content))).collect();
        let plot = Self {
            name,
            care,
            root: root.to_owned(),
            store: store.to_owned(),
            shelf: Arc::clone(shelf),
            config,
            extra,
            places,
            there: true,
            names: 0,
            steps: Vec::new(),
        };
        let dir = if care == Care::Swapped { plot.root.join("..first").join(name) } else { plot.dir() };
        for (version, content) in versions {
            let dir = dir.join(version.to_string());
            fs::create_dir_all(&dir).expect("a directory");
            fs::write(dir.join("model.pt"), &shelf.get(*content).bytes).expect("a file");
        }
        if matches!(care, Care::Configured | Care::All) || !extra.is_empty() {
            fs::write(plot.dir().join("config.yaml"), text(config, extra)).expect("a configuration");
        }
        if care == Care::Swapped {
            super::point(&plot.root.join("..data"), Path::new("..first"));
            super::point(&plot.dir(), &Path::new("..data").join(name));
        }
        plot
    }

    /// What of it a server can see.
    pub(super) fn disk(&self) -> Disk {
        let versions = self.places.iter().map(|(version, place)| (*version, place.content())).collect();
        Disk { there: self.there, config: self.config, versions }
    }

    /// Whether requests for it must never fail.
    pub(super) fn is_anchored(&self) -> bool {
        self.care != Care::Free
    }

    fn dir(&self) -> PathBuf {
        self.root.join(self.name)
    }

    fn version_dir(&self, version: u64) -> PathBuf {
        self.dir().join(version.to_string())
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn step(
        &mut self,
        says: String,
        changes: Vec<Change>,
        act: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        self.steps.push(Step { says, changes, act: Box::new(act) });
    }

    /// The change to what lies at a version now.
    fn holds(&self, version: u64) -> Change {
        match self.places.get(&version) {
            Some(place) => Change::Holds(version, place.content()),
            None => Change::Removed(version),
        }
    }

    /// A step after which this lies at a version.
    fn becomes(
        &mut self,
        version: u64,
        place: Option<Place>,
        says: &str,
        act: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        match place {
            Some(place) => drop(self.places.insert(version, place)),
            None => drop(self.places.remove(&version)),
        }
        let change = self.holds(version);
        self.step(format!("{}/{version}: {says}", self.name), vec![change], act);
    }

    /// The next thing to do to this model, whatever it is.
    pub(super) fn next(&mut self, random: &mut Random) -> Vec<Step> {
        if self.care == Care::Swapped {
            self.swap(random);
            return std::mem::take(&mut self.steps);
        }
        let configured = matches!(self.care, Care::Configured | Care::All);
        // Who removes what serves while the configuration cannot be read has nothing that serves.
        if self.config == Config::Broken || configured && random.one_in(3) {
            self.write_config(random);
            return std::mem::take(&mut self.steps);
        }
        if self.care == Care::Free && random.one_in(6) {
            self.remove_model(random);
            return std::mem::take(&mut self.steps);
        }
        if !self.there {
            self.there = true;
            let dir = self.dir();
            let (disk, extra) = (self.disk(), self.extra);
            self.step(format!("{}: made again", self.name), vec![Change::Whole(disk)], move || {
                fs::create_dir(&dir)?;
                if extra.is_empty() { Ok(()) } else { fs::write(dir.join("config.yaml"), extra) }
            });
        }
        let lowest = if self.care == Care::Free { 1 } else { 2 };
        let version = lowest + random.below(4);
        let mut content = self.shelf.any(random);
        while self.places.get(&version).and_then(|place| place.content()) == Some(content) {
            content = self.shelf.any(random);
        }
        match random.below(14) {
            0 | 1 => self.rename_directory(version, content, random),
            2 => self.rename_file(version, content, random),
            3 | 4 => self.copy(version, content, random),
            5 => self.overwrite(version, content, random),
            6 => self.corrupt(version, random),
            7 => self.truncate(version, random),
            8 | 9 => self.link_directory(version, content, random),
            10 => self.link_file(version, content, random),
            11 => self.with_manifest(version, content, random),
            12 => self.clear(version, random),
            _ => self.bustle(version, random),
        }
        std::mem::take(&mut self.steps)
    }

    /// Takes a version away, if it is there.
    fn clear(&mut self, version: u64, random: &mut Random) {
        let Some(place) = self.places.get(&version).copied() else { return };
        let dir = self.version_dir(version);
        if place.link {
            self.becomes(version, None, "unlinked", move || fs::remove_file(dir));
        } else if random.one_in(2) {
            let name = self.name(".gone");
            let gone = self.dir().join(name);
            let to = gone.clone();
            self.becomes(version, None, "renamed away", move || fs::rename(dir, to));
            self.step(format!("{}: cleaned up", self.name), Vec::new(), move || fs::remove_dir_all(gone));
        } else {
            // Whichever of the files goes first.
            let bare = Place { manifest: None, ..place }.content();
            let changes =
                vec![Change::Holds(version, bare), Change::Holds(version, None), Change::Removed(version)];
            self.places.remove(&version);
            self.step(format!("{}/{version}: deleted", self.name), changes, move || fs::remove_dir_all(dir));
        }
    }

    /// Makes sure that a version is a directory of its own without a manifest.
    fn own_directory(&mut self, version: u64, random: &mut Random) -> Place {
        let dir = self.version_dir(version);
        if self.places.get(&version).is_some_and(|place| place.link) {
            self.clear(version, random);
        }
        let Some(place) = self.places.get(&version).copied() else {
            self.becomes(version, Some(Place::EMPTY), "made", move || fs::create_dir(dir));
            return Place::EMPTY;
        };
        let place = Place { manifest: None, ..place };
        if self.places[&version].manifest.is_some() {
            let manifest = dir.join("manifest.yaml");
            self.becomes(version, Some(place), "its manifest deleted", move || fs::remove_file(manifest));
        }
        place
    }

    /// The same, without a `model.pt` that leads elsewhere.
    fn own_file(&mut self, version: u64, random: &mut Random) -> Lies {
        let place = self.own_directory(version, random);
        if !matches!(place.file, Lies::Linked(_)) {
            return place.file;
        }
        let file = self.version_dir(version).join("model.pt");
        self.becomes(version, Some(Place::EMPTY), "its file unlinked", move || fs::remove_file(file));
        Lies::Nothing
    }

    /// What changes nothing: times, editors' files, somebody's notes.
    fn bustle(&mut self, version: u64, random: &mut Random) {
        let dir = self.dir();
        match random.below(3) {
            0 if self.places.get(&version).is_some_and(|place| place.file != Lies::Nothing) => {
                let file = self.version_dir(version).join("model.pt");
                self.step(format!("{}/{version}: touched", self.name), Vec::new(), move || {
                    OpenOptions::new().append(true).open(file)?.set_modified(SystemTime::now())
                });
            }
            1 => self.step(format!("{}: an editor's files", self.name), Vec::new(), move || {
                fs::write(dir.join("4913"), "")?;
                fs::write(dir.join(".config.yaml.swp"), "b0VIM 9.0")?;
                fs::remove_file(dir.join("4913"))?;
                fs::remove_file(dir.join(".config.yaml.swp"))
            }),
            _ => self.step(format!("{}: notes", self.name), Vec::new(), move || {
                fs::write(dir.join("README.md"), "mine")?;
                fs::create_dir_all(dir.join("examples"))
            }),
        }
    }

    /// Another configuration: good, or broken; renamed into place, or written over the old one.
    fn write_config(&mut self, random: &mut Random) {
        let config = match (self.care, random.below(4)) {
            (_, 0) => Config::Broken,
            (Care::All, _) | (_, 1) => Config::All,
            (_, count) => Config::Latest(usize::try_from(count - 1).expect("small")),
        };
        self.config = config;
        let instances = format!("instances: {}\n{}", 1 + random.below(3), self.extra);
        let (path, text) = (self.dir().join("config.yaml"), text(config, &instances));
        let says = format!("{}: configuration {config:?}", self.name);
        match random.below(3) {
            0 => self.step(says, vec![Change::Config(config)], move || {
                super::replace(&path, text);
                Ok(())
            }),
            // Cut for a while, where nothing is promised to those who do so.
            1 if self.care == Care::Configured => {
                let (file, half) = (path.clone(), text[.."versions: ".len()].to_owned());
                let cut = vec![Change::Config(Config::Latest(1)), Change::Config(Config::Broken)];
                self.step(format!("{says}, half"), cut, move || fs::write(file, half));
                self.step(says, vec![Change::Config(config)], move || fs::write(path, text));
            }
            // For a moment it is empty, and that must not be taken for what was meant.
            _ => self.step(says, vec![Change::Config(config)], move || fs::write(path, text)),
        }
    }

    fn remove_model(&mut self, random: &mut Random) {
        if !self.there {
            return;
        }
        let versions: Vec<u64> = self.places.keys().copied().collect();
        let whole = random.one_in(2);
        if !whole {
            for version in versions {
                self.clear(version, random);
            }
        }
        self.places.clear();
        self.there = false;
        let name = self.name(".gone");
        let (dir, gone) = (self.dir(), self.root.join(name));
        let changes = vec![Change::Whole(self.disk())];
        self.step(format!("{}: deleted", self.name), changes, move || {
            fs::rename(dir, &gone)?;
            fs::remove_dir_all(gone)
        });
    }

    /// As Kubernetes does it: a new directory with everything, one link renamed, the old directory removed.
    fn swap(&mut self, random: &mut Random) {
        let highest = 1 + random.below(3);
        let versions: Vec<u64> =
            (1..=highest).filter(|version| *version == highest || random.one_in(2)).collect();
        self.places.clear();
        let dir = self.name("..swap");
        for version in &versions {
            let content = self.shelf.any(random);
            self.places.insert(*version, Place::own(content));
            let path = self.root.join(&dir).join(self.name).join(version.to_string());
            let bytes = self.shelf.get(content).bytes.clone();
            self.step(format!("{}/{version}: {content} prepared", self.name), Vec::new(), move || {
                fs::create_dir_all(&path)?;
                fs::write(path.join("model.pt"), bytes)
            });
        }
        let data = self.root.join("..data");
        let changes = vec![Change::Whole(self.disk())];
        self.step(format!("{}: swapped to {dir}", self.name), changes, move || {
            let old = data.with_file_name(fs::read_link(&data)?);
            super::point(&data, Path::new(&dir));
            fs::remove_dir_all(old)
        });
    }
}

/// The text of a configuration.
fn text(config: Config, rest: &str) -> String {
    let versions = match config {
        Config::All => "all".to_owned(),
        Config::Latest(count) => format!("{{latest: {count}}}"),
        Config::Broken => "{latest: many}".to_owned(),
    };
    format!("versions: {versions}\n{rest}")
}
