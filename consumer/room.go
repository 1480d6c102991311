package consumer

import (
	"context"
	"time"
)

// roomWait bounds how long a poll waits for lanes that hold too much.
const roomWait = time.Second

// awaitRoom waits while all lanes together hold more than the budget: where many have small shares, a record batch for each is more than that.
// It doesn't wait long, for those that hold it may be stuck, and the others are to go on.
func (c *member) awaitRoom(ctx context.Context) {
	enough := time.After(roomWait)
	for c.buffered() > c.opts.BufferBytes {
		select {
		case <-ctx.Done():
			return
		case <-enough:
			return
		case <-c.freed:
		}
	}
}

// buffered is how many bytes all lanes hold.
func (c *member) buffered() (bytes int64) {
	for _, l := range c.ownLanes() {
		l.mu.Lock()
		bytes += l.bytes
		l.mu.Unlock()
	}
	return bytes
}
