//! STUB for compiling only
#![allow(missing_docs)]
use super::*;
use crate::spec::EgressPlan;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
#[derive(Debug)]
pub struct Broker;
#[derive(Debug, Default)]
pub struct BrokerSettings {}
#[derive(Debug)]
pub struct Inside {
    pub dns: Option<(UdpSocket, TcpListener)>,
    pub listeners: Vec<(u16, TcpListener)>,
}
#[derive(Debug)]
pub struct Attached {
    ledger: Ledger,
    _inside: Inside,
}
impl Broker {
    pub fn start(_: BrokerSettings) -> io::Result<Broker> {
        Ok(Broker)
    }
    pub fn attach(
        &self,
        _plan: EgressPlan,
        inside: Inside,
        sink: Arc<dyn Sink>,
    ) -> io::Result<Attached> {
        Ok(Attached { ledger: Ledger::new(sink), _inside: inside })
    }
}
impl Attached {
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    pub fn replace(&self, _plan: EgressPlan) {}
    pub fn generation(&self) -> u64 {
        1
    }
    pub fn listen_also(&self, _added: Vec<(u16, TcpListener)>) {}
}
