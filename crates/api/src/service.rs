//! `service!`: from a list of methods, the trait that a service implements, its remote form, and the
//! adapter that serves it over gRPC. Three kinds: `calls` (unary), `lanes`, `links`; and `streams`
//! (one request, many chunks).

macro_rules! service {
    (
        $(#[$doc:meta])*
        service $Trait:ident, remote $Remote:ident, adapter $Adapter:ident,
        client $Client:path, server $Server:path;
        calls { $( $(#[$cdoc:meta])* $call:ident($Req:ty) -> $Resp:ty, $cname:literal, $idem:literal; )* }
        lanes { $( $(#[$ldoc:meta])* $lane:ident / $lane_service:ident ($QB:ty => $Q:ty) -> ($AB:ty => $A:ty), $LaneStream:ident, $lname:literal, $settle:expr; )* }
        links { $( $(#[$kdoc:meta])* $link:ident ($DB:ty => $D:ty) -> ($UB:ty => $U:ty), $LinkStream:ident, $kname:literal; )* }
        streams { $( $(#[$sdoc:meta])* $stream:ident ($SReq:ty) -> $Chunk:ty, $ChunkStream:ident, $sname:literal; )* }
    ) => {
        $(#[$doc])*
        #[async_trait::async_trait]
        pub trait $Trait: Send + Sync + 'static {
            $( $(#[$cdoc])* async fn $call(&self, cx: &$crate::Cx, request: $Req) -> Result<$Resp, $crate::ApiError>; )*
            $( $(#[$ldoc])* fn $lane(&self, peer: $crate::LanePeer) -> $crate::Lane<$Q, $A>;
               /// The serving side of the lane; only where the service itself runs.
               fn $lane_service(&self) -> Result<std::sync::Arc<dyn $crate::LaneService<$Q, $A>>, $crate::ApiError>; )*
            $( $(#[$kdoc])* async fn $link(&self, cx: &$crate::Cx) -> Result<$crate::Link<$D, $U>, $crate::ApiError>; )*
            $( $(#[$sdoc])* async fn $stream(&self, cx: &$crate::Cx, request: $SReq) -> Result<tokio::sync::mpsc::Receiver<Result<$Chunk, $crate::ApiError>>, $crate::ApiError>; )*
        }

        /// The service in another process.
        #[derive(Clone)]
        pub struct $Remote {
            client: $Client,
            #[allow(dead_code)] // a service with nothing but lanes makes no calls
            calls: $crate::Calls,
            #[allow(dead_code)] // a service with nothing but calls spawns no tasks
            tasks: chancery_runtime::Tasks,
        }

        impl $Remote {
            /// Over a channel that connects, and connects again, by itself.
            pub fn new(channel: tonic::transport::Channel, calls: $crate::Calls, tasks: chancery_runtime::Tasks) -> Self {
                let client = <$Client>::new(channel)
                    .max_decoding_message_size($crate::channel::MESSAGE_BYTES)
                    .max_encoding_message_size($crate::channel::MESSAGE_BYTES);
                Self { client, calls, tasks }
            }
        }

        #[async_trait::async_trait]
        #[allow(clippy::redundant_closure_call)]
        impl $Trait for $Remote {
            $( async fn $call(&self, cx: &$crate::Cx, request: $Req) -> Result<$Resp, $crate::ApiError> {
                self.calls.run(cx, $cname, $idem, || {
                    let mut client = self.client.clone();
                    let request = $crate::call::outgoing(cx, request.clone());
                    async move { client.$call(request).await }
                }).await
            } )*
            $( fn $lane(&self, peer: $crate::LanePeer) -> $crate::Lane<$Q, $A> {
                let client = self.client.clone();
                let opening = $crate::lane_remote::Opening::<$QB, $AB> {
                    name: $lname,
                    peer,
                    open: Box::new(move |peer, body| {
                        let mut client = client.clone();
                        Box::pin(async move {
                            let body = tokio_stream::wrappers::ReceiverStream::new(body);
                            Ok(client.$lane($crate::call::opening(&peer, body)).await?.into_inner())
                        })
                    }),
                    settle: ($settle)(self),
                    may_settle: |item| $crate::lane_remote::Settled::may_settle(item),
                };
                $crate::Lane::remote($crate::lane_remote::RemoteLane::start(&self.tasks, opening))
            }
            fn $lane_service(&self) -> Result<std::sync::Arc<dyn $crate::LaneService<$Q, $A>>, $crate::ApiError> {
                Err($crate::ApiError::denied(concat!($lname, " is served elsewhere")))
            } )*
            $( async fn $link(&self, cx: &$crate::Cx) -> Result<$crate::Link<$D, $U>, $crate::ApiError> {
                let (opening, body) = $crate::link::Opening::<$DB, $UB>::start();
                let mut client = self.client.clone();
                let open = client.$link(tonic::Request::new(body));
                let inbound = tokio::time::timeout(cx.deadline, open)
                    .await
                    .map_err(|_| $crate::ApiError::new($crate::Code::Deadline, $kname))??
                    .into_inner();
                Ok(opening.finish(&self.tasks, inbound))
            } )*
            $( async fn $stream(&self, cx: &$crate::Cx, request: $SReq) -> Result<tokio::sync::mpsc::Receiver<Result<$Chunk, $crate::ApiError>>, $crate::ApiError> {
                let mut client = self.client.clone();
                let open = client.$stream(tonic::Request::new(request));
                let mut inbound = tokio::time::timeout(cx.deadline, open)
                    .await
                    .map_err(|_| $crate::ApiError::new($crate::Code::Deadline, $sname))??
                    .into_inner();
                let (tx, rx) = tokio::sync::mpsc::channel($crate::link::BATCHES_UNDER_WAY);
                self.tasks.spawn($sname, async move {
                    loop {
                        let next = match inbound.message().await {
                            Ok(Some(chunk)) => Ok(chunk),
                            Ok(None) => return,
                            Err(status) => Err(status.into()),
                        };
                        let failed = next.is_err();
                        if tx.send(next).await.is_err() || failed { return; }
                    }
                });
                Ok(rx)
            } )*
        }

        /// Serves the service over gRPC; checks every call against the table of roles.
        pub struct $Adapter {
            service: std::sync::Arc<dyn $Trait>,
            trust: $crate::channel::Trust,
            #[allow(dead_code)] // as above
            tasks: chancery_runtime::Tasks,
            #[allow(dead_code)] // as above
            tracer: chancery_runtime::Tracer,
        }

        impl $Adapter {
            /// The gRPC service.
            pub fn server(service: std::sync::Arc<dyn $Trait>, trust: $crate::channel::Trust, tasks: chancery_runtime::Tasks, tracer: chancery_runtime::Tracer) -> $Server {
                <$Server>::new(Self { service, trust, tasks, tracer })
                    .max_decoding_message_size($crate::channel::MESSAGE_BYTES)
                    .max_encoding_message_size($crate::channel::MESSAGE_BYTES)
            }
        }

        #[async_trait::async_trait]
        impl stub::$Trait for $Adapter {
            $( async fn $call(&self, request: tonic::Request<$Req>) -> Result<tonic::Response<$Resp>, tonic::Status> {
                let cx = $crate::call::incoming(&self.trust, &request, $cname)?;
                let _span = $crate::call::served(&self.tracer, &cx, $cname);
                Ok(tonic::Response::new(self.service.$call(&cx, request.into_inner()).await?))
            } )*
            $( type $LaneStream = tokio_stream::wrappers::ReceiverStream<Result<$AB, tonic::Status>>;
            async fn $lane(&self, request: tonic::Request<tonic::Streaming<$QB>>) -> Result<tonic::Response<Self::$LaneStream>, tonic::Status> {
                $crate::call::incoming(&self.trust, &request, $lname)?;
                let peer = $crate::call::lane_peer(&request)?;
                let service = self.service.$lane_service()?;
                Ok(tonic::Response::new($crate::lane_serve::serve(&self.tasks, service, peer, request.into_inner())))
            } )*
            $( type $LinkStream = tokio_stream::wrappers::ReceiverStream<Result<$UB, tonic::Status>>;
            async fn $link(&self, request: tonic::Request<tonic::Streaming<$DB>>) -> Result<tonic::Response<Self::$LinkStream>, tonic::Status> {
                let cx = $crate::call::incoming(&self.trust, &request, $kname)?;
                let link = self.service.$link(&cx).await?;
                Ok(tonic::Response::new($crate::link::serve::<$DB, $UB>(&self.tasks, link, request.into_inner())))
            } )*
            $( type $ChunkStream = futures_util::stream::BoxStream<'static, Result<$Chunk, tonic::Status>>;
            async fn $stream(&self, request: tonic::Request<$SReq>) -> Result<tonic::Response<Self::$ChunkStream>, tonic::Status> {
                use futures_util::StreamExt;
                let cx = $crate::call::incoming(&self.trust, &request, $sname)?;
                let chunks = self.service.$stream(&cx, request.into_inner()).await?;
                let chunks = tokio_stream::wrappers::ReceiverStream::new(chunks);
                Ok(tonic::Response::new(chunks.map(|chunk| chunk.map_err(tonic::Status::from)).boxed()))
            } )*
        }
    };
}
