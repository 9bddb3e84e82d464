"""Where audio comes in: asyncio edges over the codecs of streamdet.wire."""
