package query

import (
	"context"
	"time"
)

// CacheStats tells how a [Cache] does.
type CacheStats struct {
	// Reachable tells whether Redis answers, and Storing whether it also takes what is to be cached. Both are true where there is no Redis to fail.
	Reachable bool `json:"reachable"`
	Storing   bool `json:"storing"`
	// LastError is the class of what is wrong, as long as it is (timeout, unreachable, not permitted, not ready, full, read-only, error), and Since when it began.
	LastError string    `json:"last_error,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	// Pending tells that rows have gone which Redis may still have in answers: it couldn't be told yet. This process doesn't use it until then.
	Pending bool `json:"invalidation_pending"`
	// PausedUntil is until when the cache is left alone because it doesn't pay; zero if it isn't.
	PausedUntil time.Time `json:"paused_until,omitzero"`
	// Gets counts the reads that Redis answered, with a hit or a miss, and Hits those with a hit. Ratio is Hits/Gets, 0 without any.
	Gets  uint64  `json:"gets"`
	Hits  uint64  `json:"hits"`
	Ratio float64 `json:"hit_ratio"`
	// Oversized counts the answers that were too large to be kept.
	Oversized uint64 `json:"oversized"`
}

// Stats tells how the cache does, by what it has met so far.
func (c *Cache) Stats() CacheStats {
	if c == nil {
		return CacheStats{Reachable: true, Storing: true}
	}
	s := c.link.stats()
	s.Pending = c.pending()
	if c.resting() {
		s.PausedUntil = time.Unix(0, c.paused.Load()).UTC()
	}
	s.Hits, s.Oversized = c.hits.Load(), c.oversized.Load()
	s.Gets = s.Hits + c.misses.Load()
	if s.Gets > 0 {
		s.Ratio = float64(s.Hits) / float64(s.Gets)
	}
	return s
}

func (l *link) stats() CacheStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := CacheStats{Reachable: l.away.class == "", Storing: l.refusing.class == ""}
	switch {
	case !s.Reachable:
		s.LastError, s.Since = l.away.class, l.away.since
	case !s.Storing:
		s.LastError, s.Since = l.refusing.class, l.refusing.since
	}
	return s
}

// Watch looks every so often whether Redis can be reached and stores, does what invalidations have left, and tells how the cache does, at once and after each look, until
// ctx ends.
func (c *Cache) Watch(ctx context.Context, every time.Duration, told func(CacheStats)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		c.check(ctx)
		told(c.Stats())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// check stores something small, as a read would, so that who isn't asked learns of a fault too; or the generation that is wanting.
func (c *Cache) check(ctx context.Context) {
	if c == nil || c.link.client == nil {
		return
	}
	space, err := c.namespace(ctx)
	switch {
	case err != nil: // the database's own health tells it
	case c.pending():
		_ = c.renew(ctx, c.asked.Load()) // it is told as pending, and tried again
	default:
		c.link.store(ctx, "auditsink:cache:{"+space+"}:probe", nil, time.Minute)
	}
}
