//! What is known of media: which file holds a piece of content, and its thumbnails. The bytes are in files named by
//! their SHA-256, outside the database.
//!
//! [Content repository](https://spec.matrix.org/v1.16/client-server-api/#content-repository).

use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use rusqlite::{OptionalExtension, params};
use sallyport_core::time::Millis;

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::{count, millis, to_sql, user_id as parse_user_id},
};

/// The SHA-256 of a file, which names it.
pub type FileHash = [u8; 32];

/// A piece of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// The server that the content comes from.
    pub origin: OwnedServerName,
    /// Its id there.
    pub media_id: String,
    /// The local user who uploaded it.
    pub uploader: Option<OwnedUserId>,
    /// When it came.
    pub created: Millis,
    /// What it is; `None` if it was announced and not uploaded yet.
    pub content: Option<MediaContent>,
    /// When the announcement lapses.
    pub expires: Option<Millis>,
}

/// The bytes of a piece of content and what they are said to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaContent {
    /// The file.
    pub sha256: FileHash,
    /// Its size in bytes.
    pub size: u64,
    /// The uploader's word on its type.
    pub content_type: Option<String>,
    /// The uploader's word on its name.
    pub filename: Option<String>,
}

/// A thumbnail of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// The file.
    pub sha256: FileHash,
    /// Its size in bytes.
    pub size: u64,
    /// Its type.
    pub content_type: String,
}

/// How a thumbnail is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThumbnailKey {
    /// The original.
    pub source: FileHash,
    /// `crop` or `scale`.
    pub method: &'static str,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// What came of uploading announced content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// Stored.
    Done,
    /// Nobody announced it, or the announcement lapsed.
    Unknown,
    /// Somebody else announced it.
    NotYours,
    /// It was uploaded before.
    Already,
}

impl Read<'_> {
    /// What is known of a piece of content.
    pub fn media(&self, origin: &ServerName, media_id: &str) -> Result<Option<Media>> {
        let mut statement = self.prepare(
            "SELECT uploader, created, sha256, size, content_type, filename, expires FROM media
             WHERE origin = ?1 AND media_id = ?2",
        )?;
        let mut rows = statement.query([origin.as_str(), media_id])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let uploader: Option<String> = row.get(0)?;
        let content = match row.get::<_, Option<FileHash>>(2)? {
            Some(sha256) => Some(MediaContent {
                sha256,
                size: row.get::<_, i64>(3)?.unsigned_abs(),
                content_type: row.get(4)?,
                filename: row.get(5)?,
            }),
            None => None,
        };
        Ok(Some(Media {
            origin: origin.to_owned(),
            media_id: media_id.to_owned(),
            uploader: uploader.map(|id| parse_user_id("media", &id)).transpose()?,
            created: millis(row.get(1)?),
            content,
            expires: row.get::<_, Option<i64>>(6)?.map(millis),
        }))
    }

    /// What was uploaded to this server at or after a time, of at most this size in bytes.
    pub fn media_since(
        &self,
        origin: &ServerName,
        since: Millis,
        bytes_max: u64,
    ) -> Result<Vec<Media>> {
        let mut statement = self.prepare(
            "SELECT media_id FROM media
             WHERE origin = ?1 AND created >= ?2 AND sha256 IS NOT NULL AND size <= ?3
             ORDER BY created, media_id",
        )?;
        let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
        let ids = statement
            .query_map(params![origin.as_str(), to_sql(since), bytes_max], |row| {
                row.get::<_, String>(0)
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        ids.iter().filter_map(|id| self.media(origin, id).transpose()).collect()
    }

    /// A thumbnail that was made before.
    pub fn thumbnail(&self, key: &ThumbnailKey) -> Result<Option<Thumbnail>> {
        let mut statement = self.prepare(
            "SELECT sha256, size, content_type FROM thumbnails
             WHERE source = ?1 AND method = ?2 AND width = ?3 AND height = ?4",
        )?;
        let thumbnail =
            statement.query_row(params![key.source, key.method, key.width, key.height], |row| {
                Ok(Thumbnail {
                    sha256: row.get(0)?,
                    size: row.get::<_, i64>(1)?.unsigned_abs(),
                    content_type: row.get(2)?,
                })
            });
        Ok(thumbnail.optional()?)
    }

    /// How many announcements of a user still wait for their upload.
    pub fn announced_media(&self, user_id: &UserId, now: Millis) -> Result<usize> {
        let mut statement = self.prepare(
            "SELECT count(*) FROM media WHERE uploader = ?1 AND sha256 IS NULL AND expires > ?2",
        )?;
        Ok(count(statement.query_row(params![user_id.as_str(), to_sql(now)], |row| row.get(0))?))
    }
}

impl Write<'_> {
    /// Stores what is known of a piece of content. Answers `false` if the id was taken: content never changes.
    pub fn add_media(&mut self, media: &Media) -> Result<bool> {
        let content = media.content.as_ref();
        let size = content.map(|content| sql_size(content.size)).transpose()?;
        let added = self
            .prepare(
                "INSERT INTO media (origin, media_id, uploader, created, sha256, size,
                     content_type, filename, expires)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (origin, media_id) DO NOTHING",
            )?
            .execute(params![
                media.origin.as_str(),
                media.media_id,
                media.uploader.as_ref().map(|id| id.as_str()),
                to_sql(media.created),
                content.map(|content| content.sha256),
                size,
                content.and_then(|content| content.content_type.as_deref()),
                content.and_then(|content| content.filename.as_deref()),
                media.expires.map(to_sql)
            ])?;
        Ok(added > 0)
    }

    /// Stores the content that a user announced.
    pub fn complete_media(
        &mut self,
        origin: &ServerName,
        media_id: &str,
        uploader: &UserId,
        content: &MediaContent,
        now: Millis,
    ) -> Result<Completed> {
        let Some(media) = self.media(origin, media_id)? else { return Ok(Completed::Unknown) };
        if media.uploader.as_deref() != Some(uploader) {
            return Ok(Completed::NotYours);
        }
        if media.content.is_some() {
            return Ok(Completed::Already);
        }
        if media.expires.is_some_and(|expires| expires <= now) {
            return Ok(Completed::Unknown);
        }
        self.prepare(
            "UPDATE media SET sha256 = ?3, size = ?4, content_type = ?5, filename = ?6,
                 expires = NULL
             WHERE origin = ?1 AND media_id = ?2",
        )?
        .execute(params![
            origin.as_str(),
            media_id,
            content.sha256,
            sql_size(content.size)?,
            content.content_type,
            content.filename
        ])?;
        Ok(Completed::Done)
    }

    /// Removes a user's announcements that lapsed.
    pub fn forget_lapsed_media(&mut self, user_id: &UserId, now: Millis) -> Result<()> {
        self.prepare("DELETE FROM media WHERE uploader = ?1 AND sha256 IS NULL AND expires <= ?2")?
            .execute(params![user_id.as_str(), to_sql(now)])?;
        Ok(())
    }

    /// Remembers a thumbnail.
    pub fn add_thumbnail(&mut self, key: &ThumbnailKey, thumbnail: &Thumbnail) -> Result<()> {
        self.prepare(
            "INSERT INTO thumbnails (source, method, width, height, sha256, size, content_type)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (source, method, width, height) DO NOTHING",
        )?
        .execute(params![
            key.source,
            key.method,
            key.width,
            key.height,
            thumbnail.sha256,
            sql_size(thumbnail.size)?,
            thumbnail.content_type
        ])?;
        Ok(())
    }
}

fn sql_size(size: u64) -> Result<i64> {
    i64::try_from(size).map_err(|error| Error::corrupt("media", error))
}
