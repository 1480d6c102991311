package query

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"auditsink/metrics"
)

// rest is for how long a cache that doesn't pay is left alone.
const rest = 10 * time.Minute

// CacheOptions say what a [Cache] keeps, where, and for how long.
type CacheOptions struct {
	// Namespace names the database whose answers these are, so that two that share a Redis don't mix: [auditsink/internal/postgres.Pool.Identity]. It is asked for when
	// it is first needed, and again until it is known; without it nothing is cached.
	Namespace func(context.Context) (string, error)
	// TTL bounds the life of every answer; 0 for no cache.
	TTL time.Duration
	// EntryBytes is the size of the largest answer that is kept.
	EntryBytes int
	// Timeout bounds each operation of Redis, beside the caller's deadline.
	Timeout time.Duration
	// Metrics and Log may be nil.
	Metrics *metrics.Metrics
	Log     *zap.Logger
	// Now is this process's clock, nil for time.Now.
	Now func() time.Time
}

// Cache keeps answers in Redis for whoever asks the same again, in this process or in another. What it returns is what the reader returned no longer ago than the
// answer's life, and later than the last successful [Cache.Invalidate]: every answer is kept with the generation in which it was read, looked up before it was read, and
// counts only in that. Whatever becomes of Redis, the reader is asked instead, within the same deadline.
//
// A nil Cache, and one without a client, has nothing. All methods may be called from any goroutine.
type Cache struct {
	link    link
	options CacheOptions
	space   atomic.Pointer[string]
	flights flights

	asked, done             atomic.Uint64 // invalidations, and the last of them that Redis has confirmed
	paused                  atomic.Int64  // until when it is left alone, in nanoseconds since 1970
	hits, misses, oversized atomic.Uint64
}

// NewCache makes a cache in the Redis of client, nil for none. The client stays the caller's, who closes it after [Cache.Close]; its operations should end with their contexts
// (ContextTimeoutEnabled) and not be tried again.
func NewCache(client *redis.Client, o CacheOptions) *Cache {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	c := &Cache{options: o}
	c.link = link{client: client, timeout: o.Timeout, now: o.Now, log: o.Log}
	if client != nil {
		client.AddHook(&c.link)
	}
	return c
}

type freshKey struct{}

// Fresh makes reads with the context ask the database, and not the cache, which then has the new answer for others.
func Fresh(ctx context.Context) context.Context { return context.WithValue(ctx, freshKey{}, true) }

func isFresh(ctx context.Context) bool { return ctx.Value(freshKey{}) != nil }

// Do returns the answer that key stands for: from Redis, or of load, which is called once for all who ask at the same time, and whose answer is then kept for ttl. The
// key must hold all on which the answer depends, the caller's scope too. load gets a context that lives as long as anybody waits for it; its error goes to all who do. The
// answer is shared and must not be changed. The only errors are those of load and of ctx.
func (c *Cache) Do(ctx context.Context, key [32]byte, ttl time.Duration, load func(context.Context) ([]byte, error)) ([]byte, error) {
	if c == nil || c.link.client == nil || min(ttl, c.options.TTL) <= 0 || c.resting() {
		return load(ctx)
	}
	begun := c.options.Now()
	asked := c.asked.Load() // before the look: who joins a flight by it asked before this process's next invalidation began
	space, err := c.namespace(ctx)
	if err != nil {
		c.count("error")
		return load(ctx)
	}
	fresh := isFresh(ctx)
	found := c.look(ctx, space, key, fresh)
	if found.entry != nil {
		c.count("hit")
		return found.entry, nil
	}
	run := func(ctx context.Context, answer func([]byte, error)) {
		data, err := load(ctx)
		answer(data, err)
		if err == nil {
			c.keep(ctx, space, key, found.token, data, min(ttl, c.options.TTL)-c.options.Now().Sub(begun))
		}
	}
	if fresh {
		return c.flights.alone(ctx, run)
	}
	data, shared, err := c.flights.join(ctx, flightKey{key, found.token, asked}, run)
	switch {
	case found.failed:
		c.count("error")
	case shared:
		c.count("shared")
	default:
		c.count("miss")
	}
	return data, err
}

// found is what a look at Redis gave.
type found struct {
	entry  []byte // nil for none
	token  token  // of the generation; zero where it isn't known, and then nothing is to be kept
	failed bool
}

// look asks for the generation and the entry, in one round trip where both are there. With fresh it leaves the entry.
func (c *Cache) look(ctx context.Context, space string, key [32]byte, fresh bool) found {
	if c.pending() { // what Redis has may be from before
		return found{failed: true}
	}
	generation, entry, err := c.link.look(ctx, generationKey(space), entryKey(space, key))
	if err == nil && generation.zero() {
		generation, err = c.link.begin(ctx, generationKey(space))
		return found{token: generation, failed: err != nil}
	}
	if err != nil {
		return found{failed: true}
	}
	if !fresh {
		if data, ok := unseal(key, generation, entry); ok {
			return found{entry: data, token: generation}
		}
	}
	return found{token: generation}
}

// keep stores an answer, unless it is too large or too old. It is called once the answer was given: nobody waits for it. What goes wrong with it is the link's to tell.
func (c *Cache) keep(ctx context.Context, space string, key [32]byte, t token, data []byte, ttl time.Duration) {
	switch {
	case t.zero() || ttl < time.Millisecond || c.pending():
	case len(data) > c.options.EntryBytes:
		c.oversized.Add(1)
	default:
		c.link.store(context.WithoutCancel(ctx), entryKey(space, key), seal(key, t, data), ttl)
	}
}

// Invalidate makes all answers kept so far misses, in every process, from its successful return on. Where it fails, this process leaves the cache alone until a later one, or
// [Cache.Watch], has succeeded; others may serve what they find there, for as long as it lives.
func (c *Cache) Invalidate(ctx context.Context) error {
	if c == nil || c.link.client == nil {
		return nil
	}
	return c.renew(ctx, c.asked.Add(1))
}

// renew begins a new generation, which settles the invalidations that were asked for up to this one.
func (c *Cache) renew(ctx context.Context, asked uint64) error {
	space, err := c.namespace(ctx)
	if err != nil {
		return err
	}
	if err := c.link.renew(ctx, generationKey(space)); err != nil {
		return err
	}
	for {
		done := c.done.Load()
		if done >= asked || c.done.CompareAndSwap(done, asked) {
			return nil
		}
	}
}

// pending tells whether an invalidation was asked for that Redis hasn't confirmed.
func (c *Cache) pending() bool { return c.done.Load() < c.asked.Load() }

// Clear empties the cache for all processes and leaves it alone for ten minutes in this one: it doesn't pay.
func (c *Cache) Clear(ctx context.Context) error {
	if c == nil {
		return nil
	}
	c.Pause(rest)
	return c.Invalidate(ctx)
}

// Pause leaves the cache alone for this long from now.
func (c *Cache) Pause(d time.Duration) {
	if c != nil {
		c.paused.Store(c.options.Now().Add(d).UnixNano())
	}
}

func (c *Cache) resting() bool { return c.options.Now().UnixNano() < c.paused.Load() }

// Close waits for what is being kept. No read may be under way or begin.
func (c *Cache) Close() {
	if c != nil {
		c.flights.all.Wait()
	}
}

// namespaceTimeout is for how long a database is waited for that doesn't say who it is: what asks without a deadline of its own, to watch or to invalidate, must go on.
const namespaceTimeout = 5 * time.Second

// namespace asks until it knows.
func (c *Cache) namespace(ctx context.Context) (string, error) {
	if known := c.space.Load(); known != nil {
		return *known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, namespaceTimeout)
	defer cancel()
	space, err := c.options.Namespace(ctx)
	if err != nil {
		return "", err
	}
	c.space.Store(&space)
	return space, nil
}

func (c *Cache) count(result string) {
	switch result {
	case "hit":
		c.hits.Add(1)
	case "miss":
		c.misses.Add(1)
	}
	if c.options.Metrics != nil {
		c.options.Metrics.QueryCacheRequests.WithLabelValues(result).Inc()
	}
}

// The braces keep the keys of a database together where Redis is a cluster.
func generationKey(space string) string { return "auditsink:cache:{" + space + "}:generation" }

func entryKey(space string, key [32]byte) string {
	return "auditsink:cache:{" + space + "}:entry:" + string(key[:])
}
