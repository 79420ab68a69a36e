//! [Content repository](https://spec.matrix.org/v1.19/client-server-api/#content-repository).
//!
//! Bodies are streams: nothing of a file is in memory but the piece on its way. The old paths without authentication
//! ask for a token too: what members share is not for whoever reaches the box.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use ruma::{
    OwnedMxcUri, OwnedServerName, UInt,
    api::{
        client::{
            authenticated_media::{
                get_content::v1 as get_content, get_content_as_filename::v1 as get_named,
                get_content_thumbnail::v1 as get_thumbnail, get_media_config::v1 as get_config,
            },
            media::{
                create_content::v3 as upload, create_content_async::v3 as upload_announced,
                create_mxc_uri::v1 as announce,
            },
        },
        error::ErrorKind,
    },
    http_headers::{ContentDisposition, ContentDispositionType},
    media::Method as RumaMethod,
};
use sallyport_core::limits::{MEDIA_PIECE_MS_MAX, UPLOAD_PIECE_BYTES};
use sallyport_store::{FileHash, MediaContent};

use crate::{
    app::{App, random},
    http::{
        Routes,
        error::ApiError,
        file::FileBody,
        route::{Streamed, route, stream},
    },
    service::{
        media::{self, Description, MediaError, Method, Receiving, Wanted},
        sessions::Identity,
    },
};

/// The endpoints of this section.
#[expect(
    deprecated,
    reason = "clients of before version 1.11 of the specification use these paths"
)]
pub(super) fn routes() -> Routes {
    use ruma::api::client::media::{
        get_content::v3 as old_content, get_content_as_filename::v3 as old_named,
        get_content_thumbnail::v3 as old_thumbnail, get_media_config::v3 as old_config,
    };
    vec![
        stream(upload),
        route(announce),
        stream(upload_announced),
        route(config),
        route(|app: Arc<App>, _: Identity, _: old_config::Request| async move {
            Ok(old_config::Response::new(size_max(&app)))
        }),
        stream(|app, _: Identity, Streamed { request, .. }: Streamed<get_content::Request>| {
            download(app, request.server_name, request.media_id, None)
        }),
        stream(|app, _: Identity, Streamed { request, .. }: Streamed<old_content::Request>| {
            download(app, request.server_name, request.media_id, None)
        }),
        stream(|app, _: Identity, Streamed { request, .. }: Streamed<get_named::Request>| {
            download(app, request.server_name, request.media_id, Some(request.filename))
        }),
        stream(|app, _: Identity, Streamed { request, .. }: Streamed<old_named::Request>| {
            download(app, request.server_name, request.media_id, Some(request.filename))
        }),
        stream(|app, _: Identity, Streamed { request, .. }: Streamed<get_thumbnail::Request>| {
            let wanted = wanted(request.method.as_ref(), request.width, request.height);
            thumbnail(app, request.server_name, request.media_id, wanted)
        }),
        stream(|app, _: Identity, Streamed { request, .. }: Streamed<old_thumbnail::Request>| {
            let wanted = wanted(request.method.as_ref(), request.width, request.height);
            thumbnail(app, request.server_name, request.media_id, wanted)
        }),
    ]
}

async fn config(
    app: Arc<App>,
    _: Identity,
    _: get_config::Request,
) -> Result<get_config::Response, ApiError> {
    Ok(get_config::Response::new(size_max(&app)))
}

fn size_max(app: &App) -> UInt {
    UInt::try_from(app.config.limits.max_upload_bytes).unwrap_or(UInt::MAX)
}

async fn upload(
    app: Arc<App>,
    identity: Identity,
    incoming: Streamed<upload::Request>,
) -> Result<Response, ApiError> {
    let Streamed { request, headers, body } = incoming;
    let file = receive(&app, &headers, body).await?;
    let media_id = media::media_id(random()?);
    let (id, now) = (media_id.clone(), (app.clock)());
    let description =
        Description { content_type: request.content_type, filename: request.filename };
    let add = move |app: &App| {
        let (origin, uploader) = (&app.config.server_name, Some(identity.user_id));
        media::add(&app.store, origin, uploader, &id, file, description, now)
    };
    app.run(add).await?;
    json(upload::Response::new(uri(&app, &media_id)))
}

async fn announce(
    app: Arc<App>,
    identity: Identity,
    _: announce::Request,
) -> Result<announce::Response, ApiError> {
    let media_id = media::media_id(random()?);
    let mut response = announce::Response::new(uri(&app, &media_id));
    let now = (app.clock)();
    let announce = move |app: &App| {
        let origin = app.config.server_name.clone();
        media::announce(&app.store, origin, identity.user_id, media_id, now)
    };
    response.unused_expires_at = Some(app.run(announce).await?.to_matrix());
    Ok(response)
}

async fn upload_announced(
    app: Arc<App>,
    identity: Identity,
    incoming: Streamed<upload_announced::Request>,
) -> Result<Response, ApiError> {
    let Streamed { request, headers, body } = incoming;
    let (origin, media_id, user_id) =
        (request.server_name.clone(), request.media_id.clone(), identity.user_id.clone());
    let now = (app.clock)();
    // Before anything is written: not everybody may fill the disk.
    app.run(move |app| media::may_complete(&app.store, &origin, &media_id, &user_id, now)).await?;
    let file = receive(&app, &headers, body).await?;
    let description =
        Description { content_type: request.content_type, filename: request.filename };
    let complete = move |app: &App| {
        let (origin, id, user_id) = (request.server_name, request.media_id, identity.user_id);
        media::complete(&app.store, origin, id, user_id, file, description, now)
    };
    app.run(complete).await?;
    Ok(axum::response::IntoResponse::into_response(axum::Json(serde_json::json!({}))))
}

/// Writes a body to a file, piece by piece.
async fn receive(
    app: &Arc<App>,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Receiving, ApiError> {
    let bytes_max = app.config.limits.max_upload_bytes;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > bytes_max)
    {
        return Err(ApiError::too_large(bytes_max));
    }
    let random = random()?;
    let mut file = app.run(move |app| app.files.receive(random, bytes_max)).await?;
    let mut piece = Vec::new();
    loop {
        let wait = Duration::from_millis(MEDIA_PIECE_MS_MAX);
        let frame = tokio::time::timeout(wait, body.frame()).await.map_err(|_| slow())?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        piece.extend_from_slice(&data);
        if piece.len() >= UPLOAD_PIECE_BYTES {
            file = write(app, file, std::mem::take(&mut piece)).await?;
        }
    }
    write(app, file, piece).await
}

async fn write(app: &Arc<App>, mut file: Receiving, piece: Vec<u8>) -> Result<Receiving, ApiError> {
    app.run(move |_| {
        file.write(&piece)?;
        Ok::<_, MediaError>(file)
    })
    .await
}

async fn download(
    app: Arc<App>,
    origin: OwnedServerName,
    media_id: String,
    filename: Option<String>,
) -> Result<Response, ApiError> {
    let now = (app.clock)();
    let find = move |app: &App| media::content(&app.store, &origin, &media_id, now);
    let content = app.run(find).await?;
    let MediaContent { sha256, size, content_type, filename: stored } = content;
    serve(&app, &sha256, size, content_type, filename.or(stored)).await
}

async fn thumbnail(
    app: Arc<App>,
    origin: OwnedServerName,
    media_id: String,
    wanted: Wanted,
) -> Result<Response, ApiError> {
    let (now, random) = ((app.clock)(), random()?);
    let make = move |app: &App| {
        let content = media::content(&app.store, &origin, &media_id, now)?;
        media::thumbnail(&app.store, &app.files, &content, wanted, random)
    };
    let thumbnail = app.run_thumbnail(make).await?;
    serve(&app, &thumbnail.sha256, thumbnail.size, Some(thumbnail.content_type), None).await
}

fn wanted(method: Option<&RumaMethod>, width: UInt, height: UInt) -> Wanted {
    let method = if method == Some(&RumaMethod::Crop) { Method::Crop } else { Method::Scale };
    let pixels = |count: UInt| u32::try_from(u64::from(count)).unwrap_or(u32::MAX);
    Wanted { method, width: pixels(width), height: pixels(height) }
}

/// Answers with a file, in a way that keeps it from doing harm in a browser.
async fn serve(
    app: &Arc<App>,
    sha256: &FileHash,
    size: u64,
    content_type: Option<String>,
    filename: Option<String>,
) -> Result<Response, ApiError> {
    let path = app.files.path(sha256);
    let file = tokio::fs::File::open(path).await.map_err(ApiError::internal)?;
    let mut response = Response::new(Body::new(FileBody::new(file, size)));
    let headers = response.headers_mut();
    headers.extend(SAFE_HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    headers.insert(header::CONTENT_LENGTH, size.into());
    let content_type = content_type.unwrap_or_default();
    let disposition = if is_harmless(&content_type) {
        ContentDispositionType::Inline
    } else {
        ContentDispositionType::Attachment
    };
    let disposition = ContentDisposition::new(disposition).with_filename(filename).to_string();
    let attachment = HeaderValue::from_static("attachment");
    headers.insert(
        header::CONTENT_DISPOSITION,
        HeaderValue::try_from(disposition).unwrap_or(attachment),
    );
    let content_type = HeaderValue::try_from(content_type).ok().filter(|text| !text.is_empty());
    let unknown = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, content_type.unwrap_or(unknown));
    Ok(response)
}

/// The headers that the specification asks for, and caching in the client alone: content never changes.
const SAFE_HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
         style-src 'unsafe-inline'; object-src 'self';",
    ),
    (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "private, max-age=31536000, immutable"),
];

/// Types that a browser may show in place
/// ([serving inline content](https://spec.matrix.org/v1.19/client-server-api/#serving-inline-content)).
fn is_harmless(content_type: &str) -> bool {
    const HARMLESS: [&str; 26] = [
        "text/css",
        "text/plain",
        "text/csv",
        "application/json",
        "application/ld+json",
        "image/jpeg",
        "image/gif",
        "image/png",
        "image/apng",
        "image/webp",
        "image/avif",
        "video/mp4",
        "video/webm",
        "video/ogg",
        "video/quicktime",
        "audio/mp4",
        "audio/webm",
        "audio/aac",
        "audio/mpeg",
        "audio/ogg",
        "audio/wave",
        "audio/wav",
        "audio/x-wav",
        "audio/x-pn-wav",
        "audio/flac",
        "audio/x-flac",
    ];
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    HARMLESS.iter().any(|harmless| harmless.eq_ignore_ascii_case(essence))
}

fn uri(app: &App, media_id: &str) -> OwnedMxcUri {
    format!("mxc://{}/{media_id}", app.config.server_name).into()
}

fn json(response: impl ruma::api::OutgoingResponse) -> Result<Response, ApiError> {
    use ruma::api::OutgoingResponseExt as _;
    let response = response.try_into_http_response::<Vec<u8>>().map_err(ApiError::internal)?;
    Ok(response.map(Body::from))
}

fn slow() -> ApiError {
    let message = "The body did not arrive in time.";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::Unknown, message)
}

fn broken(error: axum::Error) -> ApiError {
    ApiError::bad_json("The connection ended within the body.").with_source(error)
}

impl From<MediaError> for ApiError {
    fn from(error: MediaError) -> Self {
        let new = Self::new;
        match error {
            MediaError::NotFound => Self::not_found("This server does not have this media."),
            MediaError::NotYetUploaded => new(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorKind::NotYetUploaded,
                "The media was not uploaded yet.",
            ),
            MediaError::NotYours => Self::forbidden("Somebody else announced this media."),
            MediaError::Already => new(
                StatusCode::CONFLICT,
                ErrorKind::CannotOverwriteMedia,
                "The media was uploaded before.",
            ),
            MediaError::TooManyAnnounced => Self::limit_exceeded(Duration::from_secs(60)),
            MediaError::TooLarge(bytes_max) => Self::too_large(bytes_max),
            MediaError::BadName => Self::invalid_param("The name or the type is too long."),
            error @ MediaError::NoThumbnail(_) => new(
                StatusCode::BAD_REQUEST,
                ErrorKind::Unknown,
                "No thumbnail can be made of this media.",
            )
            .with_source(error),
            MediaError::File(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                Self::unavailable(error)
            }
            MediaError::File(error) => Self::internal(error),
            MediaError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_harmless;

    #[test]
    fn only_harmless_types_are_shown_in_place() {
        for (content_type, expected) in [
            ("image/png", true),
            ("IMAGE/PNG; x=y", true),
            ("text/plain;charset=utf-8", true),
            ("text/html", false),
            ("image/svg+xml", false),
            ("application/pdf", false),
            ("", false),
        ] {
            assert_eq!(is_harmless(content_type), expected, "{content_type}");
        }
    }
}
