//! What only one way of driving a worker needs, opened with the rights of whoever started it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::credential::hidden::Hidden;
use crate::credential::{self, KeyError, Secret};
use crate::exit::Exit;
use crate::explain;
use crate::listener::{self, Bound, TlsConfig};
use crate::queue::ItemRequest;
use crate::scripts::Starter;
use crate::settings::{Mode, OnWork, Serve, Settings};
use crate::webhook::signature::Verifier;

/// As opened.
#[derive(Debug)]
pub enum Opened {
    /// Nothing more.
    Poll,
    /// The item to serve.
    Item(ItemRequest),
    /// The process that starts scripts; none for `--check`.
    Scripts(OnWork, Option<Starter>),
    /// The webhook.
    Hook(Box<Hook>),
}

/// The webhook's key and its listener; no listener for `--check`.
#[derive(Debug)]
pub struct Hook {
    pub settings: Serve,
    pub verifier: Verifier,
    pub bound: Option<Bound>,
}

impl Opened {
    /// Reads secrets, and listens unless it is only to `check`.
    ///
    /// # Errors
    /// The exit code of what was printed.
    pub fn open(mode: &Mode, check: bool, hidden: &mut Hidden) -> Result<Opened, Exit> {
        match mode {
            Mode::Poll => Ok(Opened::Poll),
            Mode::OnWork(on_work) => Ok(Opened::Scripts(on_work.clone(), None)),
            Mode::Run(item) => {
                let secret = read(Secret::WorkItem, item.secret_file.as_deref(), hidden)?;
                let (work, session) = (item.work.clone(), item.session.clone());
                Ok(Opened::Item(ItemRequest { work, session, secret }))
            }
            Mode::Serve(serve) => Ok(Opened::Hook(Box::new(hook(serve, check, hidden)?))),
        }
    }

    /// Starts what must be a process of its own.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(self, settings: &Settings) -> io::Result<Opened> {
        match self {
            Opened::Scripts(on_work, None) if !settings.check => {
                let starter = Starter::start(&on_work.program, &on_work.name)?;
                Ok(Opened::Scripts(on_work, Some(starter)))
            }
            other => Ok(other),
        }
    }
}

fn read(
    what: Secret,
    file: Option<&Path>,
    hidden: &mut Hidden,
) -> Result<Option<secrecy::SecretString>, Exit> {
    credential::secret(what, file, hidden).map_err(|error| complain(&error))
}

fn complain(error: &KeyError) -> Exit {
    explain::complain(error, Some(&error.hint()));
    error.exit()
}

/// Listens at an address that `option` names.
///
/// # Errors
/// The exit code of what was printed.
pub fn listen(at: SocketAddr, tls: Option<TlsConfig>, option: &str) -> Result<Bound, Exit> {
    Bound::bind(at, tls).map_err(|error| {
        explain::say(&format!("error: cannot listen on {at}: {error}"));
        explain::say(&format!("hint: name a free address of this host with {option}"));
        Exit::Usage
    })
}

fn hook(serve: &Serve, check: bool, hidden: &mut Hidden) -> Result<Hook, Exit> {
    let what = Secret::WebhookKey;
    let key = read(what, serve.key_file.as_deref(), hidden)?;
    let key = key.ok_or_else(|| complain(&KeyError::NotGiven { what }))?;
    let verifier = Verifier::new(&key).map_err(|problem| {
        let file = serve.key_file.as_deref();
        let from = file.map_or(what.variable().to_owned(), |file| file.display().to_string());
        complain(&KeyError::Unusable { what, from, reason: problem.to_string() })
    })?;
    let tls = serve.tls.as_ref().map(|(chain, key)| listener::tls(chain, key)).transpose();
    let tls = tls.map_err(|error| match &error {
        listener::TlsError::Key(error) => complain(error),
        error => {
            explain::complain(error, Some("name a PEM file, the host's certificate first"));
            Exit::Policy
        }
    })?;
    let bound = (!check).then(|| listen(serve.listen, tls, "--listen")).transpose()?;
    Ok(Hook { settings: serve.clone(), verifier, bound })
}
