package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
)

// TestClassify: the table of docs/design.md, by codes that Postgres really gives.
func TestClassify(t *testing.T) {
	for class, codes := range map[postgres.Class][]string{
		postgres.Transient: {
			"08000", "08006", "08P01", "25000", "25006", "25P02", "25P03", "40001", "40003", "40P01", "53000", "53100", "53200", "53300", "53400",
			"55P03", "57000", "57014", "57P01", "57P02", "57P03", "57P05", "58000", "58030", "58P01",
		},
		postgres.Row:     {"22000", "22001", "22003", "22021", "22P02", "22P03", "22P05", "23000", "23502", "23503", "23505", "23P01"},
		postgres.Fatal:   {"28000", "28P01", "3D000", "3F000", "42000", "42501", "42601", "42703", "42P01", "42P10"},
		postgres.Unknown: {"0A000", "0LP01", "21000", "2BP01", "38000", "40002", "54000", "54001", "55000", "55006", "55P04", "P0001", "XX000", "XX001", "XX002"},
	} {
		for _, code := range codes {
			for _, err := range []error{
				&pgconn.PgError{Code: code, Message: "text"},
				fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code}),
				errors.Join(errors.New("other"), fmt.Errorf("joined: %w", &pgconn.PgError{Code: code})),
				postgres.Explain(&pgconn.PgError{Code: code}),
			} {
				require.Equal(t, class, postgres.Classify(err), "%s: %v", code, err)
			}
		}
	}
	require.Equal(t, postgres.NoPartition, postgres.Classify(&pgconn.PgError{Code: "23514", TableName: "audit_log"}))
	require.Equal(t, postgres.Row, postgres.Classify(&pgconn.PgError{Code: "23514"}))
	require.Equal(t, postgres.Row, postgres.Classify(&pgconn.PgError{Code: "23514", ConstraintName: "audit_log_status_check"}))
	_, err := postgres.Open(t.Context(), postgres.Options{URL: "postgres://h/d?sslrootcert=/no/such/file&sslmode=verify-full"})
	require.Equal(t, postgres.Fatal, postgres.Classify(err))
	for _, lost := range []error{io.ErrUnexpectedEOF, errors.New("conn closed"), context.DeadlineExceeded, &pgconn.ConnectError{}} {
		require.Equal(t, postgres.Transient, postgres.Classify(lost))
	}
}

func TestClassNames(t *testing.T) {
	for class, name := range map[postgres.Class]string{
		postgres.Transient: "transient", postgres.NoPartition: "no_partition", postgres.Row: "row", postgres.Fatal: "fatal",
		postgres.Unknown: "unknown", 0: "class(0)",
	} {
		require.Equal(t, name, class.String())
	}
}

// TestClassifyReal: the same from a server.
func TestClassifyReal(t *testing.T) {
	db := testkit.Postgres(t, 15)
	conn, err := pgx.Connect(t.Context(), db)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `
		CREATE TABLE parted (at timestamptz NOT NULL, status text CHECK (status <> 'no')) PARTITION BY RANGE (at);
		CREATE TABLE part PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')`)
	require.NoError(t, err)
	for sql, class := range map[string]postgres.Class{
		`INSERT INTO parted VALUES ('2027-01-01', 'yes')`:               postgres.NoPartition,
		`INSERT INTO parted VALUES ('2026-01-02', 'no')`:                postgres.Row,
		`INSERT INTO parted VALUES (NULL, 'yes')`:                       postgres.NoPartition,
		`INSERT INTO part VALUES (NULL, 'yes')`:                         postgres.Row,
		`SELECT 'x'::int`:                                               postgres.Row,
		`DO $$ BEGIN RAISE check_violation; END $$`:                     postgres.Row,
		`SELECT * FROM missing`:                                         postgres.Fatal,
		`SET statement_timeout = 20; SELECT pg_sleep(60)`:               postgres.Transient,
		`BEGIN READ ONLY; INSERT INTO parted VALUES ('2026-01-02', '')`: postgres.Transient,
		`SELECT pg_terminate_backend(pg_backend_pid())`:                 postgres.Transient, // the last: it ends the session
	} {
		if class == postgres.Transient {
			continue
		}
		_, err := conn.Exec(t.Context(), sql)
		require.Error(t, err, sql)
		require.Equal(t, class, postgres.Classify(err), "%s: %v", sql, err)
	}
	other, err := pgx.Connect(t.Context(), db)
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Close(context.WithoutCancel(t.Context()))) }()
	_, err = other.Exec(t.Context(), `BEGIN; LOCK TABLE part`)
	require.NoError(t, err)
	for _, sql := range []string{
		`SET lock_timeout = 20; BEGIN; LOCK TABLE part`, // which another has locked
		`ROLLBACK; SET statement_timeout = 20; SELECT pg_sleep(60)`,
		`ROLLBACK; BEGIN READ ONLY; INSERT INTO parted VALUES ('2026-01-02', '')`,
		`ROLLBACK; SELECT pg_terminate_backend(pg_backend_pid())`,
		`SELECT 1`, // on a connection that was lost
	} {
		_, err := conn.Exec(t.Context(), sql)
		require.Error(t, err, sql)
		require.Equal(t, postgres.Transient, postgres.Classify(err), "%s: %v", sql, err)
		require.Equal(t, strings.Contains(sql, "lock_timeout"), postgres.IsLocked(err), "%s: %v", sql, err)
	}
}

// TestExplainReal: each failure of a real server says what to do, keeps its cause, and no password.
func TestExplainReal(t *testing.T) {
	const password = "correct-horse-battery"
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15, Password: password})
	good := server.URL("postgres")
	for name, c := range map[string]struct {
		url, sql, code, want string
	}{
		"wrong password":   {"postgres://postgres:wrong-" + password + "@" + server.Address() + "/postgres?sslmode=disable", ``, "28P01", "AUDITSINK_POSTGRES_URL"},
		"unknown user":     {"postgres://nobody:" + password + "@" + server.Address() + "/postgres?sslmode=disable", ``, "28P01", "user or the password"},
		"unknown database": {server.URL("missing"), ``, "3D000", "createdb"},
		"both TLS and not": {"postgres://postgres:wrong-" + password + "@" + server.Address() + "/postgres?sslmode=prefer", ``, "28P01", "AUDITSINK_POSTGRES_URL"},
		"read-only":        {good + "&default_transaction_read_only=on", `CREATE TABLE t ()`, "25006", "must name the primary"},
		"missing table":    {good, `SELECT * FROM audit_log`, "42P01", "auditsink migrate up"},
		"missing schema":   {good, `CREATE TABLE missing.t ()`, "3F000", "auditsink migrate up"},
		"missing column":   {good, `SELECT other FROM pg_class`, "42703", "auditsink migrate up"},
		"no privilege":     {good, `CREATE ROLE weak; SET ROLE weak; SELECT * FROM pg_authid`, "42501", "grant"},
		"lost statement":   {good, `EXECUTE gone`, "26000", "AUDITSINK_POSTGRES_PREPARED=false"},
		"double statement": {good, `PREPARE p AS SELECT 1; PREPARE p AS SELECT 1`, "42P05", "AUDITSINK_POSTGRES_PREPARED=false"},
		"no TLS there":     {"postgres://postgres:" + password + "@" + server.Address() + "/postgres?sslmode=require", ``, "", "sslmode"},
		"nobody listens":   {"postgres://postgres:" + password + "@127.0.0.1:1/postgres", ``, "", "is it running"},
	} {
		t.Run(name, func(t *testing.T) {
			pool := open(t, postgres.Options{URL: c.url, MaxConns: 1})
			conn, err := pool.Acquire(t.Context())
			if c.sql != "" {
				require.NoError(t, err)
				_, err = conn.Exec(t.Context(), c.sql)
				conn.Conn().Close(t.Context()) //nolint:errcheck // its session has other settings now
				conn.Release()
			}
			require.Error(t, err)
			var answer *pgconn.PgError
			if errors.As(err, &answer) {
				require.Equal(t, c.code, answer.Code)
			} else {
				require.Empty(t, c.code, err)
			}
			explained := postgres.Explain(err)
			require.ErrorContains(t, explained, c.want)
			require.ErrorIs(t, explained, err)
			require.NotContains(t, explained.Error(), password)
		})
	}
	require.NoError(t, postgres.Explain(nil))
	plain := errors.New("of another kind")
	require.Equal(t, plain, postgres.Explain(plain))
	full := postgres.Explain(&pgconn.PgError{Code: "53300"})
	require.ErrorContains(t, full, "max_connections")
	// A caller who gave up learns nothing about the server.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := open(t, postgres.Options{URL: good, MaxConns: 1}).Acquire(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, err, postgres.Explain(err))
}
