package query

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

const (
	patience = 3                // failures in a row after which Redis is left alone
	minPause = time.Second      // how long at first
	maxPause = 30 * time.Second // and at most
	calm     = time.Minute      // without a refusal, after which it is taken to store again
	share    = 4                // Redis may take this part of what is left of a caller's time: the database needs the rest
)

// errAway is the answer of a Redis that is left alone.
var errAway = errors.New("not asked: Redis has failed and is left alone for a while")

// link is the way to Redis. It knows whether Redis can be reached and stores, and says so once when that changes.
type link struct {
	client  *redis.Client
	timeout time.Duration
	now     func() time.Time
	log     *zap.Logger

	dials  atomic.Uint64 // connections made
	server atomic.Pointer[server]

	mu       sync.Mutex // guards what follows
	failures int        // in a row
	away     trouble
	refusing trouble // of what is to be stored
	retry    time.Time
	pause    time.Duration
}

// server is which life of Redis the connections lead to, as of so many connections made.
type server struct {
	dials uint64
	run   string // empty where it may not be asked for
}

// trouble is what is wrong; its zero value is nothing.
type trouble struct {
	class       string
	since, last time.Time
}

// look reads an entry and the token of the generation as it is, which is zero where there is none.
func (l *link) look(ctx context.Context, generation, entry string) (t token, data []byte, err error) {
	err = l.ask(ctx, false, func(ctx context.Context) error {
		for again := false; ; again = true {
			dials, known := l.dials.Load(), l.server.Load()
			unknown := again || known == nil || known.dials != dials
			pipe := l.client.Pipeline()
			var info *redis.StringCmd
			if unknown { // on the same connection, so of the same server
				info = pipe.Info(ctx, "server")
			}
			got := pipe.MGet(ctx, generation, entry)
			_, _ = pipe.Exec(ctx) // each command has its own error
			if err := got.Err(); err != nil {
				return err
			}
			if unknown {
				known = &server{dials, runID(info.Val())}
				l.server.Store(known)
			} else if l.dials.Load() != dials {
				continue // it may have gone to another server
			}
			values := got.Val()
			if g, ok := values[0].(string); ok && len(g) == len(token{}) {
				t = known.token(g)
			}
			if e, ok := values[1].(string); ok {
				data = []byte(e)
			}
			return nil
		}
	})
	return t, data, err
}

// begin makes a first generation unless another has, and returns its token.
func (l *link) begin(ctx context.Context, key string) (t token, err error) {
	first := random()
	err = l.ask(ctx, true, func(ctx context.Context) error {
		pipe := l.client.Pipeline()
		set := pipe.SetArgs(ctx, key, first, redis.SetArgs{Mode: "NX"})
		get := pipe.Get(ctx, key)
		_, _ = pipe.Exec(ctx) // each command has its own error
		generation, err := get.Result()
		switch {
		case redis.HasErrorPrefix(err, "WRONGTYPE"), err == nil && len(generation) != len(t): // it isn't ours
			generation = random()
			err = l.client.Set(ctx, key, generation, 0).Err()
		case errors.Is(err, redis.Nil) && set.Err() != nil: // there was none, and none could be made
			err = set.Err()
		}
		if known := l.server.Load(); err == nil && known != nil {
			t = known.token(generation)
		}
		return err
	})
	return t, err
}

// renew makes a new generation, whatever there is. It tries also while Redis is left alone.
func (l *link) renew(ctx context.Context, key string) error {
	if err := l.try(ctx, true, func(ctx context.Context) error { return l.client.Set(ctx, key, random(), 0).Err() }); err != nil {
		return fmt.Errorf("begin a new generation of the cache in Redis: %w", err)
	}
	return nil
}

func (l *link) store(ctx context.Context, key string, entry []byte, ttl time.Duration) {
	_ = l.ask(ctx, true, func(ctx context.Context) error { return l.client.Set(ctx, key, entry, ttl).Err() }) // it has been told: see tell
}

// ask does what Redis is asked for, unless it is left alone.
func (l *link) ask(ctx context.Context, storing bool, op func(context.Context) error) error {
	if !l.may() {
		return errAway
	}
	return l.try(ctx, storing, op)
}

func (l *link) try(ctx context.Context, storing bool, op func(context.Context) error) error {
	budget := l.timeout
	if deadline, ok := ctx.Deadline(); ok {
		budget = min(budget, time.Until(deadline)/share)
	}
	bounded, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	err := op(bounded)
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	if err == nil || ctx.Err() == nil { // a caller who has gone says nothing about Redis
		l.tell(storing, err)
	}
	return err
}

// may tells whether Redis may be asked now: always, or by one from time to time who finds out whether it is back.
func (l *link) may() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away.class == "" {
		return true
	}
	now := l.now()
	if now.Before(l.retry) {
		return false
	}
	l.pause = min(2*l.pause, maxPause) //nolint:mnd // twice as long each time
	l.retry = now.Add(l.pause)
	return true
}

// tell takes in how an operation went.
func (l *link) tell(storing bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	class := classify(err)
	var reply redis.Error
	switch {
	case err == nil:
		l.failures = 0
		if l.away.class != "" {
			l.log.Info("Redis is back: reads use the cache again", zap.Duration("after", now.Sub(l.away.since)))
			l.away = trouble{}
		}
		if storing && l.refusing.class != "" && now.Sub(l.refusing.last) >= calm {
			l.log.Info("Redis stores again: reads are cached", zap.Duration("after", now.Sub(l.refusing.since)))
			l.refusing = trouble{}
		}
	case storing && errors.As(err, &reply):
		if l.refusing.class == "" {
			l.refusing.since = now
			l.log.Warn("Redis refuses what is to be cached; reads go on", zap.String("problem", class))
		}
		l.refusing.class, l.refusing.last = class, now
	default:
		l.failures++
		if l.away.class == "" && l.failures < patience {
			return
		}
		if l.away.class == "" {
			l.log.Warn("Redis can't be reached: reads go to the database alone", zap.String("problem", class))
			l.away.since, l.pause = now, minPause
			l.retry = now.Add(l.pause)
		}
		l.away.class, l.away.last = class, now
	}
}

// classify names what went wrong without its words, in which a server may quote what it was sent.
func classify(err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return ""
	case redis.IsOOMError(err):
		return "full"
	case redis.IsReadOnlyError(err):
		return "read-only"
	case redis.IsAuthError(err), redis.IsPermissionError(err):
		return "not permitted"
	case redis.IsLoadingError(err), redis.IsMasterDownError(err), redis.IsClusterDownError(err), redis.IsMaxClientsError(err), redis.HasErrorPrefix(err, "BUSY"):
		return "not ready"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	if reply := redis.Error(nil); errors.As(err, &reply) {
		return "error"
	}
	return "unreachable"
}

// runID is the server's name for the time since it was started.
func runID(info string) string {
	_, after, _ := strings.Cut(info, "run_id:")
	id, _, _ := strings.Cut(after, "\r\n")
	return id
}

func (s server) token(generation string) token {
	sum := sha256.Sum256([]byte(generation + s.run))
	return token(sum[:len(token{})])
}

// random is a generation that never was.
func random() string {
	id := make([]byte, len(token{}))
	rand.Read(id)
	return string(id)
}

// DialHook counts the connections made.
func (l *link) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		if err == nil {
			l.dials.Add(1)
		}
		return conn, err
	}
}

// ProcessHook changes nothing.
func (*link) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook changes nothing.
func (*link) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
