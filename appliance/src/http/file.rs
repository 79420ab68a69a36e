//! A file as the body of a response, read piece by piece as the client takes it.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use sallyport_core::limits::DOWNLOAD_PIECE_BYTES;
use tokio::{
    fs::File,
    io::{AsyncRead as _, ReadBuf},
};

/// The next `left` bytes of a file.
pub(crate) struct FileBody {
    file: File,
    left: u64,
}

impl FileBody {
    pub(crate) fn new(file: File, size: u64) -> Self {
        Self { file, left: size }
    }
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let piece = usize::try_from(self.left).unwrap_or(usize::MAX).min(DOWNLOAD_PIECE_BYTES);
        let mut bytes = vec![0; piece];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = ready!(pin!(&mut self.file).poll_read(context, &mut buffer));
        let filled = buffer.filled().len();
        if let Err(error) = read {
            return Poll::Ready(Some(Err(error)));
        }
        if filled == 0 {
            // The length was promised: the connection must break rather than end early in peace.
            return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        }
        bytes.truncate(filled);
        self.left = self.left.saturating_sub(filled as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
