//! libfuse's set-uid mount helpers: which are here, and which version each is.
