package query_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"auditsink/internal/query"
	"auditsink/internal/testkit"
)

// loss makes commands that store fail: those that are done all the same, and those that aren't.
type loss struct {
	fails func(cmd string) (fail, done bool) // of SET, and of SET NX in a pipeline
}

var errLost = errors.New("the answer was lost")

func (*loss) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *loss) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		fail, done := l.lost(cmd)
		if !fail || done {
			if err := next(ctx, cmd); err != nil {
				return err
			}
		}
		if fail {
			cmd.SetErr(errLost)
			return errLost
		}
		return nil
	}
}

func (l *loss) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		fail, done := l.lost(cmds[0])
		if !fail || done {
			if err := next(ctx, cmds); err != nil {
				return err
			}
		}
		if fail {
			for _, cmd := range cmds {
				cmd.SetErr(errLost)
			}
			return errLost
		}
		return nil
	}
}

func (l *loss) lost(cmd redis.Cmder) (fail, done bool) {
	if cmd.Name() != "set" || l.fails == nil {
		return false, false
	}
	key, _ := cmd.Args()[1].(string) // empty otherwise
	switch {
	case strings.Contains(key, ":entry:"):
		return l.fails("entry")
	case strings.HasSuffix(key, ":generation") && strings.EqualFold(asText(cmd.Args()[len(cmd.Args())-1]), "nx"):
		return l.fails("first")
	default:
		return l.fails("renew")
	}
}

func asText(v any) string {
	text, _ := v.(string) // empty otherwise
	return text
}

// TestCacheLost: what is stored and reported as failed, and what is not stored, of an answer and of a generation: no read notices.
func TestCacheLost(t *testing.T) {
	server := testkit.OwnRedis(t)
	for _, of := range []string{"entry", "first", "renew"} {
		for _, done := range []bool{true, false} {
			name := of + " not stored"
			if done {
				name = of + " stored"
			}
			t.Run(name, func(t *testing.T) {
				admin := connect(t, server.URL(), redisTimeout)
				require.NoError(t, admin.FlushAll(t.Context()).Err())
				l, times := &loss{}, 0
				l.fails = func(cmd string) (bool, bool) {
					if cmd != of {
						return false, false
					}
					times++
					return times <= 2, done
				}
				c, other, s := newCache(t, connect(t, server.URL(), redisTimeout)), newCache(t, connect(t, server.URL(), redisTimeout)), newSource("first")
				c.client.AddHook(l)
				for range 5 {
					require.Equal(t, "first", c.read(t, s))
				}
				require.Less(t, s.asked.Load(), int32(5), "in the end it is kept")
				require.Equal(t, "first", other.read(t, s))
				s.says("second")
				err := c.Invalidate(t.Context())
				for ; err != nil; err = c.Invalidate(t.Context()) {
					require.ErrorIs(t, err, errLost)
					require.True(t, c.Stats().Pending)
					require.Equal(t, "second", c.read(t, s), "not before Redis has confirmed it")
				}
				require.Equal(t, "second", c.read(t, s))
				require.Equal(t, "second", other.read(t, s))
				require.GreaterOrEqual(t, times, 1)
				require.False(t, c.Stats().Pending)
			})
		}
	}
}

// TestCacheReadBeforeInvalidation: an answer that was read before an invalidation isn't served after it, though it is kept after it.
func TestCacheReadBeforeInvalidation(t *testing.T) {
	server := testkit.OwnRedis(t)
	c, other := newCache(t, connect(t, server.URL(), redisTimeout)), newCache(t, connect(t, server.URL(), redisTimeout))
	for name, between := range map[string]func() error{
		"here":      func() error { return c.Invalidate(t.Context()) },
		"elsewhere": func() error { return other.Invalidate(t.Context()) },
		"after a flush": func() error {
			return errors.Join(c.client.FlushAll(t.Context()).Err(), other.Invalidate(t.Context()))
		},
		"before a flush": func() error {
			return errors.Join(other.Invalidate(t.Context()), c.client.FlushAll(t.Context()).Err())
		},
		"and another reads first": func() error {
			err := other.Invalidate(t.Context())
			other.read(t, newSource("second"))
			return err
		},
	} {
		for _, fresh := range []bool{false, true} {
			s := newSource("first")
			ctx := t.Context()
			if fresh {
				ctx = query.Fresh(ctx)
			}
			require.NoError(t, c.Invalidate(t.Context()))
			data, err := c.Do(ctx, key("question"), time.Hour, func(ctx context.Context) ([]byte, error) {
				data, err := s.load(ctx)
				s.says("second") // the rows go
				return data, errors.Join(err, between())
			})
			require.NoError(t, err)
			require.Equal(t, "first", string(data), name)
			c.Close()
			require.Equal(t, "second", c.read(t, s), name)
			require.Equal(t, "second", other.read(t, s), name)
		}
	}
}

// TestCacheOldMemory: a Redis that is started again from an old copy of its memory, or a replica that takes over and lacks the latest, knows a generation that is over, and
// the answers of it. They aren't served.
func TestCacheOldMemory(t *testing.T) {
	server, replica := testkit.OwnRedis(t), testkit.OwnRedis(t)
	proxy := testkit.OwnProxy(t, server.Address())
	c, s := newCache(t, connect(t, "redis://"+proxy.Address(), redisTimeout)), newSource("first")
	admin, heir := connect(t, server.URL(), redisTimeout), connect(t, replica.URL(), redisTimeout)
	require.Equal(t, "first", c.read(t, s))
	require.NoError(t, admin.Save(t.Context()).Err())
	s.says("second")
	require.NoError(t, c.Invalidate(t.Context()))
	require.NoError(t, server.Kill())
	require.NoError(t, server.Start(t.Context()))
	generation, err := admin.Keys(t.Context(), "*:generation").Result()
	require.NoError(t, err)
	require.Len(t, generation, 1, "it has read its memory")
	require.Len(t, c.kept(t), 1)
	require.Equal(t, "second", c.read(t, s))
	s.says("third")
	require.Equal(t, "second", c.read(t, s), "and goes on")

	host, port, _ := strings.Cut(server.Address(), ":")
	require.NoError(t, heir.Do(t.Context(), "REPLICAOF", host, port).Err())
	require.Eventually(t, func() bool {
		n, err := heir.DBSize(t.Context()).Result()
		return err == nil && n == 2
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, heir.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())
	require.NoError(t, c.Invalidate(t.Context()))
	proxy.Point(replica.Address())
	require.Equal(t, "third", c.read(t, s))
}
