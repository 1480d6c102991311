package testkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// StartStandby starts a streaming replica of this server, under the name by which Synchronous knows it: a word of lowercase letters. It
// has its own port and data, takes reads only until Promote, and outlives this server. Only Debian's PostgreSQL 15 can make one. ctx
// bounds the start only. The caller must call Close.
//
// Stop of a server waits for its standbys to have everything; a primary that is to fail has Kill or Immediate.
func (s *PostgresServer) StartStandby(ctx context.Context, name string) (*PostgresServer, error) {
	if !exists(filepath.Join(s.bin, "pg_basebackup")) {
		return nil, fmt.Errorf("PostgreSQL %d here has no pg_basebackup: only 15 makes a standby", s.options.Version)
	}
	place, err := newPlace(ctx, "standby")
	if err != nil {
		return nil, err
	}
	standby := &PostgresServer{options: s.options, bin: s.bin, place: place, account: s.account, standbyOf: s, name: name}
	standby.options.Settings = maps.Clone(s.options.Settings)
	if standby.options.Settings == nil {
		standby.options.Settings = map[string]string{}
	}
	// The default of 5 s is how long a standby would wait before it connects again.
	standby.options.Settings["wal_retrieve_retry_interval"] = "100ms"
	if err := standby.copyPrimary(ctx); err != nil {
		return nil, errors.Join(err, standby.Close())
	}
	err = onFreePorts(func() error {
		var err error
		if standby.port, err = place.port(); err != nil {
			return err
		}
		return standby.start(ctx)
	})
	if err == nil {
		// The setting came with the primary's data, and would let a promoted server wait for itself.
		err = standby.alterSystem(ctx, "RESET synchronous_standby_names")
	}
	if err == nil {
		err = standby.CatchUp(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, standby.Close())
	}
	return standby, nil
}

// copyPrimary makes the data folder from the running primary's.
func (s *PostgresServer) copyPrimary(ctx context.Context) error {
	if err := s.own(s.place.dir); err != nil {
		return err
	}
	err := run(s.command(ctx, "pg_basebackup", "-D", s.data(), "-d", s.primaryURL(), "--write-recovery-conf", "--wal-method=stream",
		"--checkpoint=fast", "--no-sync"))
	if err != nil {
		return fmt.Errorf("copy the primary: %w", err)
	}
	return nil
}

// primaryURL is how the standby reaches its primary.
func (s *PostgresServer) primaryURL() string {
	u, _ := url.Parse(s.standbyOf.URL("")) // it is one of ours
	query := u.Query()
	query.Set("application_name", s.name)
	u.RawQuery = query.Encode()
	return u.String()
}

// Synchronous lets every COMMIT from now on wait until one of the standbys of these names has it on its disk; without a name, none waits
// any more. It returns when that is so: with a standby that is away it waits for it until ctx ends.
func (s *PostgresServer) Synchronous(ctx context.Context, standbys ...string) error {
	want := ""
	if len(standbys) > 0 {
		want = "ANY 1 (" + strings.Join(standbys, ", ") + ")"
	}
	if err := s.alterSystem(ctx, "SET synchronous_standby_names = '"+want+"'"); err != nil {
		return fmt.Errorf("set the synchronous standbys: %w", err)
	}
	err := s.waitFor(ctx, `SELECT count(*) FILTER (WHERE sync_state = 'quorum') = $1 FROM pg_stat_replication`, len(standbys))
	if err != nil {
		return fmt.Errorf("wait for the synchronous standbys %q: %w", standbys, err)
	}
	// It is the checkpointer that tells the sessions of the new setting. A checkpoint asked for now follows that.
	return s.exec(ctx, "CHECKPOINT")
}

// HoldBack cuts a standby off from its primary: what is committed from now on does not reach it, so that Promote loses it. It returns
// when the connection is gone. A synchronous standby that is held back keeps the primary's COMMITs waiting.
func (s *PostgresServer) HoldBack(ctx context.Context) error {
	if err := s.alterSystem(ctx, "SET primary_conninfo = ''"); err != nil {
		return fmt.Errorf("hold a standby back: %w", err)
	}
	if err := s.waitFor(ctx, "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"); err != nil {
		return fmt.Errorf("hold a standby back: %w", err)
	}
	return nil
}

// CatchUp lets a standby that was held back follow its primary again, and waits until it shows everything that the primary has written
// so far.
func (s *PostgresServer) CatchUp(ctx context.Context) error {
	if s.standbyOf == nil {
		return errors.New("let a standby catch up: the server is no standby")
	}
	if err := s.alterSystem(ctx, "SET primary_conninfo = '"+strings.ReplaceAll(s.primaryURL(), "'", "''")+"'"); err != nil {
		return fmt.Errorf("let a standby catch up: %w", err)
	}
	written, err := ask[string](ctx, s.standbyOf, "SELECT pg_current_wal_flush_lsn()::text")
	if err != nil {
		return fmt.Errorf("let a standby catch up: ask the primary: %w", err)
	}
	err = s.waitFor(ctx, "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AND pg_last_wal_replay_lsn() >= $1::text::pg_lsn", written)
	if err != nil {
		return fmt.Errorf("let a standby catch up: %w", err)
	}
	return nil
}

// Promote makes a standby a primary of its own, and returns when it takes writes. Its former primary must be down by then, or both do.
func (s *PostgresServer) Promote(ctx context.Context) error {
	if err := s.exec(ctx, "SELECT pg_promote(wait => false)"); err != nil {
		return fmt.Errorf("promote a standby: %w", err)
	}
	if err := s.waitFor(ctx, "SELECT NOT pg_is_in_recovery()"); err != nil {
		return fmt.Errorf("promote a standby: %w", err)
	}
	s.standbyOf = nil
	return nil
}

// URLOf returns the URL of a database for a client that goes to the one of these servers that takes writes. They share one password: a
// primary and its standbys.
func URLOf(database string, servers ...*PostgresServer) string {
	u, _ := url.Parse(servers[0].URL(database)) // it is one of ours
	var hosts []string
	for _, server := range servers {
		hosts = append(hosts, server.Address())
	}
	u.Host = strings.Join(hosts, ",")
	query := u.Query()
	query.Set("target_session_attrs", "read-write")
	u.RawQuery = query.Encode()
	return u.String()
}

// alterSystem changes a setting that needs no restart.
func (s *PostgresServer) alterSystem(ctx context.Context, change string) error {
	if err := s.exec(ctx, "ALTER SYSTEM "+change); err != nil {
		return err
	}
	return s.exec(ctx, "SELECT pg_reload_conf()")
}

// waitFor polls a query until it answers true.
func (s *PostgresServer) waitFor(ctx context.Context, query string, args ...any) error {
	return poll(ctx, 20*time.Millisecond, func() error {
		ok, err := ask[bool](ctx, s, query, args...)
		if err == nil && !ok {
			err = fmt.Errorf("not so: %s", query)
		}
		return err
	})
}

// ask returns the only value that a query gives, on a connection of its own.
func ask[T any](ctx context.Context, s *PostgresServer, query string, args ...any) (T, error) {
	var value T
	connection, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return value, err
	}
	err = connection.QueryRow(ctx, query, args...).Scan(&value)
	return value, errors.Join(err, connection.Close(ctx))
}
