package testkit

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// PgBouncer is a running pgbouncer in transaction mode before one PostgreSQL server, on a port of 127.0.0.1. Clients need no password.
type PgBouncer struct {
	place   *place
	port    int
	process *process
}

// OwnPgBouncer starts a pgbouncer in transaction mode for this test alone, and ends it when the test ends. It returns the URL of the database through
// it. Clients must do without prepared statements.
func OwnPgBouncer(t testing.TB, postgresURL string) string {
	t.Helper()
	bouncer, err := StartPgBouncer(t.Context(), postgresURL)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bouncer.Close()) })
	through, err := bouncer.URL(postgresURL)
	require.NoError(t, err)
	return through
}

// StartPgBouncer starts a pgbouncer before the server of a database's URL, for all databases on it. ctx bounds the start only. The caller must call
// Close.
func StartPgBouncer(ctx context.Context, postgresURL string) (*PgBouncer, error) {
	binary, err := program("/usr/sbin/pgbouncer", "pgbouncer")
	if err != nil {
		return nil, err
	}
	server, err := pgx.ParseConfig(postgresURL)
	if err != nil {
		return nil, fmt.Errorf("read the URL of pgbouncer's server: %w", err)
	}
	place, err := newPlace(ctx, "pgbouncer")
	if err != nil {
		return nil, err
	}
	bouncer := &PgBouncer{place: place}
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second) // it is ready in no time, or not at all
	defer cancel()
	err = onFreePorts(func() error { return bouncer.start(bounded, binary, server) })
	if err != nil {
		return nil, errors.Join(err, bouncer.Close())
	}
	return bouncer, nil
}

func (b *PgBouncer) start(ctx context.Context, binary string, server *pgx.ConnConfig) error {
	account, err := postgresAccount() // pgbouncer refuses to run as root, too
	if err != nil {
		return err
	}
	if b.port, err = b.place.port(); err != nil {
		return err
	}
	// auth_type any lets everybody in, as the server's user of the first line.
	file := filepath.Join(b.place.dir, "pgbouncer.ini")
	target := fmt.Sprintf("* = host=%s port=%d user=%s", server.Host, server.Port, server.User)
	if server.Password != "" { // pgbouncer reads no empty one
		target += " password='" + strings.ReplaceAll(server.Password, "'", "''") + "'"
	}
	settings := []string{
		"[databases]", target,
		"[pgbouncer]",
		"listen_addr = 127.0.0.1", "listen_port = " + strconv.Itoa(b.port), "unix_socket_dir =",
		"auth_type = any", "pool_mode = transaction", "default_pool_size = 20", "max_client_conn = 500", "",
	}
	if err := os.WriteFile(file, []byte(strings.Join(settings, "\n")), 0o600); err != nil {
		return fmt.Errorf("write pgbouncer's settings: %w", err)
	}
	if account != nil {
		if err := os.Chown(file, int(account.Uid), int(account.Gid)); err != nil {
			return fmt.Errorf("give pgbouncer its settings: %w", err)
		}
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, file)
	cmd.Dir = b.place.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: account}
	if b.process, err = startProcess(cmd, filepath.Join(b.place.dir, "pgbouncer.log")); err != nil {
		return err
	}
	through := server.Copy()
	through.Host, through.Port = "127.0.0.1", uint16(b.port) //nolint:gosec // a port
	return b.process.ready(ctx, func(ctx context.Context) error {
		connection, err := pgx.ConnectConfig(ctx, through)
		if err != nil {
			return err
		}
		return connection.Close(ctx)
	})
}

// URL returns the URL of a database with pgbouncer in place of its server.
func (b *PgBouncer) URL(postgresURL string) (string, error) {
	u, err := url.Parse(postgresURL)
	if err != nil {
		return "", fmt.Errorf("lead a URL through pgbouncer: %w", err)
	}
	u.Host = address(b.port)
	return u.String(), nil
}

// Close ends pgbouncer and its connections.
func (b *PgBouncer) Close() error {
	var err error
	if b.process != nil {
		err = b.process.kill()
	}
	return errors.Join(err, b.place.release())
}
