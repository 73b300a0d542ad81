"""What waits, written once for trio, for asyncio and for neither: generators that yield what they wait for."""
