//! Media: files named by the SHA-256 of their content, and what is known of them.
//!
//! [Content repository](https://spec.matrix.org/v1.16/client-server-api/#content-repository). Media of other servers
//! are here only if a bundle brought them: nothing is ever fetched.

mod files;
mod thumbnails;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use sallyport_core::{
    limits::{MEDIA_ANNOUNCED_MAX, MEDIA_ANNOUNCED_MS, MEDIA_NAME_BYTES_MAX},
    time::Millis,
};
use sallyport_store::{Completed, Media, MediaContent, Store};

pub use self::{
    files::{Files, Receiving},
    thumbnails::{Method, Wanted, thumbnail},
};

/// Why media were not stored or found.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The box does not have it, and will not ask anybody for it.
    #[error("there is no such media here")]
    NotFound,
    /// It was announced, and its uploader has not uploaded it yet.
    #[error("the media was not uploaded yet")]
    NotYetUploaded,
    /// Somebody else announced it.
    #[error("the media was announced by somebody else")]
    NotYours,
    /// It was uploaded before, and content never changes.
    #[error("the media was uploaded before")]
    Already,
    /// The user announced more than they uploaded.
    #[error("too many announced uploads have not come yet")]
    TooManyAnnounced,
    /// It is larger than the box takes.
    #[error("the media is larger than {0} bytes")]
    TooLarge(u64),
    /// The file's name or its type is too long.
    #[error("the name or the type of the media is too long")]
    BadName,
    /// No thumbnail can be made of it.
    #[error("no thumbnail can be made of this media")]
    NoThumbnail(#[source] Option<image::ImageError>),
    /// The file system failed.
    #[error("the file could not be read or written")]
    File(#[from] std::io::Error),
    /// The database failed.
    #[error("the media could not be stored")]
    Store(#[from] sallyport_store::Error),
}

/// What an uploader says about a file.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Its type.
    pub content_type: Option<String>,
    /// Its name.
    pub filename: Option<String>,
}

/// A media id that nobody guesses.
pub fn media_id(random: [u8; 18]) -> String {
    URL_SAFE_NO_PAD.encode(random)
}

/// Keeps an uploaded file under a new media id of this server.
///
/// # Errors
/// If the file or its description cannot be stored.
pub fn add(
    store: &Store,
    origin: &ServerName,
    uploader: Option<OwnedUserId>,
    media_id: &str,
    file: Receiving,
    description: Description,
    now: Millis,
) -> Result<(), MediaError> {
    let media = Media {
        origin: origin.to_owned(),
        media_id: media_id.to_owned(),
        uploader,
        created: now,
        content: Some(finish(file, description)?),
        expires: None,
    };
    if store.write(move |write| write.add_media(&media))? {
        Ok(())
    } else {
        Err(MediaError::Already)
    }
}

/// Keeps a file that a bundle brought under the media id of its own server. What is here already stays.
///
/// # Errors
/// If the file or its description cannot be stored.
pub fn add_remote(
    store: &Store,
    origin: &ServerName,
    media_id: &str,
    file: Receiving,
    description: Description,
    now: Millis,
) -> Result<(), MediaError> {
    match add(store, origin, None, media_id, file, description, now) {
        Err(MediaError::Already) => Ok(()),
        other => other,
    }
}

/// Reserves a media id for an upload that comes later. Answers until when it is waited for.
///
/// # Errors
/// If the user announced too many.
pub fn announce(
    store: &Store,
    origin: OwnedServerName,
    uploader: OwnedUserId,
    media_id: String,
    now: Millis,
) -> Result<Millis, MediaError> {
    let expires = now.plus(Duration::from_millis(MEDIA_ANNOUNCED_MS));
    let media = Media {
        origin,
        media_id,
        uploader: Some(uploader.clone()),
        created: now,
        content: None,
        expires: Some(expires),
    };
    store.write(move |write| {
        write.forget_lapsed_media(&uploader, now)?;
        if write.announced_media(&uploader, now)? >= MEDIA_ANNOUNCED_MAX {
            return Err(MediaError::TooManyAnnounced);
        }
        write.add_media(&media)?;
        Ok(expires)
    })
}

/// Whether a user may upload the content of this announced media id now.
///
/// # Errors
/// Why not.
pub fn may_complete(
    store: &Store,
    origin: &ServerName,
    media_id: &str,
    uploader: &UserId,
    now: Millis,
) -> Result<(), MediaError> {
    let media = store.read(|read| read.media(origin, media_id))?.ok_or(MediaError::NotFound)?;
    if media.uploader.as_deref() != Some(uploader) {
        Err(MediaError::NotYours)
    } else if media.content.is_some() {
        Err(MediaError::Already)
    } else if media.expires.is_some_and(|expires| expires <= now) {
        Err(MediaError::NotFound)
    } else {
        Ok(())
    }
}

/// Keeps an uploaded file under the media id that was announced for it.
///
/// # Errors
/// If nobody announced it, somebody else did, or it was uploaded before.
pub fn complete(
    store: &Store,
    origin: OwnedServerName,
    media_id: String,
    uploader: OwnedUserId,
    file: Receiving,
    description: Description,
    now: Millis,
) -> Result<(), MediaError> {
    let content = finish(file, description)?;
    let completed = store
        .write(move |write| write.complete_media(&origin, &media_id, &uploader, &content, now))?;
    match completed {
        Completed::Done => Ok(()),
        Completed::Unknown => Err(MediaError::NotFound),
        Completed::NotYours => Err(MediaError::NotYours),
        Completed::Already => Err(MediaError::Already),
    }
}

/// What is known of the content of a media id.
///
/// # Errors
/// If it is not here.
pub fn content(
    store: &Store,
    origin: &ServerName,
    media_id: &str,
    now: Millis,
) -> Result<MediaContent, MediaError> {
    let media = store.read(|read| read.media(origin, media_id))?.ok_or(MediaError::NotFound)?;
    match media.content {
        Some(content) => Ok(content),
        None if media.expires.is_some_and(|expires| expires <= now) => Err(MediaError::NotFound),
        None => Err(MediaError::NotYetUploaded),
    }
}

fn finish(file: Receiving, description: Description) -> Result<MediaContent, MediaError> {
    let Description { content_type, filename } = description;
    let too_long = |text: &String| text.len() > MEDIA_NAME_BYTES_MAX;
    if content_type.as_ref().is_some_and(too_long) || filename.as_ref().is_some_and(too_long) {
        return Err(MediaError::BadName);
    }
    let (sha256, size) = file.finish()?;
    Ok(MediaContent { sha256, size, content_type, filename })
}
