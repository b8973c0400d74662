//! STUB
pub fn entry(session: Option<&str>, entry: &stockade_runtime::egress::Entry) {
    tracing::info!(event = "egress.entry", session, ?entry, "x");
}
