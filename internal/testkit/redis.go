package testkit

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// RedisServer is a running Redis that keeps nothing on disk, on a port of 127.0.0.1. It is made for one test, whose goroutine alone uses it.
type RedisServer struct {
	place   *place
	port    int
	options []string
	process *process
}

// OwnRedis starts a Redis for this test alone and ends it when the test ends. options are arguments of redis-server, such as --maxmemory 2mb.
func OwnRedis(t testing.TB, options ...string) *RedisServer {
	t.Helper()
	server, err := StartRedis(t.Context(), options...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	return server
}

// StartRedis starts a Redis with these arguments of redis-server. ctx bounds the start only. The caller must call Close.
func StartRedis(ctx context.Context, options ...string) (*RedisServer, error) {
	place, err := newPlace(ctx, "redis")
	if err != nil {
		return nil, err
	}
	s := &RedisServer{place: place, options: options}
	err = onFreePorts(func() error {
		if s.port, err = place.port(); err != nil {
			return err
		}
		return s.start(ctx)
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *RedisServer) start(ctx context.Context) error {
	binary, err := program("redis-server", "redis-server")
	if err != nil {
		return err
	}
	args := append([]string{"--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--save", "", "--appendonly", "no", "--dir", s.place.dir}, s.options...)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, args...)
	cmd.Dir = s.place.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	if s.process, err = startProcess(cmd, filepath.Join(s.place.dir, "redis.log")); err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: s.Address()})
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return errors.Join(s.process.ready(bounded, func(ctx context.Context) error { return client.Ping(ctx).Err() }), client.Close())
}

// Address is host:port.
func (s *RedisServer) Address() string { return address(s.port) }

// URL is what a client connects to: redis://host:port/0.
func (s *RedisServer) URL() string { return fmt.Sprintf("redis://%s/0", s.Address()) }

// Kill ends it at once, with all that it held.
func (s *RedisServer) Kill() error { return s.process.kill() }

// Start starts it again, empty, on the same port.
func (s *RedisServer) Start(ctx context.Context) error { return s.start(ctx) }

// Pause stops it where it is (SIGSTOP): connections stay, and nobody answers.
func (s *RedisServer) Pause() error { return s.process.pause() }

// Continue lets it go on after a Pause.
func (s *RedisServer) Continue() error { return s.process.unpause() }

// Close ends it.
func (s *RedisServer) Close() error {
	var err error
	if s.process != nil {
		err = s.process.stop(syscall.SIGTERM)
	}
	return errors.Join(err, s.place.release())
}
