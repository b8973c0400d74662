//! Questions on streams, each after its length (RFC 7766). One after the other on a connection.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::scope::Scope;
use super::{PAUSE, QUERY_BYTES_MAX, Transport, answer, rest_if_spent};

/// Connections at once; further ones wait in the kernel.
const CONNECTIONS_MAX: usize = 16;
/// Time for a whole question to arrive, counted from the answer before, and for an answer to leave.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves connections until it is dropped, and drops them then.
pub(super) async fn serve(listener: TcpListener, scope: &Arc<Scope>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(scope)));
                // Counts as a question, or connections without one would be free.
                let rate = scope.in_force().limits.connection_rate;
                scope.lookups.take(Instant::now(), rate);
                rest_if_spent(scope).await;
            }
            // No descriptors left, or a connection that is gone already.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, until the client ends it, is too slow, or sends what is no question.
async fn connection(mut stream: TcpStream, scope: Arc<Scope>) {
    let mut buffer = [0; QUERY_BYTES_MAX];
    loop {
        let query = match timeout(PATIENCE, read(&mut stream, &mut buffer)).await {
            Ok(Ok(query)) => query,
            Ok(Err(_)) | Err(_) => return,
        };
        let Some(reply) = answer(query, Transport::Tcp, &scope) else { return };
        let Ok(length) = u16::try_from(reply.len()) else { return };
        let bytes = [&length.to_be_bytes(), reply.as_slice()].concat();
        match timeout(PATIENCE, stream.write_all(&bytes)).await {
            Ok(Ok(())) => rest_if_spent(&scope).await,
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

async fn read<'a>(stream: &mut TcpStream, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let length = usize::from(stream.read_u16().await?);
    let query = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
    stream.read_exact(query).await?;
    Ok(query)
}
