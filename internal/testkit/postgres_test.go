package testkit

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { Main(m) }

func TestPostgresVersions(t *testing.T) {
	for _, version := range []int{15, 18} {
		first, second := Postgres(t, version), Postgres(t, version)
		a, b := connect(t, first), connect(t, second)
		require.Equal(t, version, value[int](t, a, "SELECT current_setting('server_version_num')::int / 10000"))
		require.Equal(t, "UTF8", value[string](t, a, "SHOW server_encoding"))
		require.Equal(t, "on", value[string](t, a, "SHOW fsync"))

		execute(t, a, "CREATE TABLE t (i int)")
		const tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
		require.EqualValues(t, 1, value[int64](t, a, tables))
		require.Zero(t, value[int64](t, b, tables), "another test's table is seen")
	}
}

func TestPostgresDatabaseGoesWithItsTest(t *testing.T) {
	var used string
	var open *pgx.Conn // its session goes too
	require.True(t, t.Run("user", func(t *testing.T) {
		used = Postgres(t, 15)
		var err error
		open, err = pgx.Connect(t.Context(), used)
		require.NoError(t, err)
	}))
	require.Error(t, open.Ping(t.Context()))
	require.NoError(t, open.Close(t.Context()))
	_, err := pgx.Connect(t.Context(), used)
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "3D000", refused.Code, "invalid_catalog_name")
}

func TestPostgresRestarts(t *testing.T) {
	server := OwnPostgres(t, PostgresOptions{Version: 18, Settings: map[string]string{"work_mem": "5MB"}})
	database, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	session := connect(t, database)
	require.Equal(t, "5MB", value[string](t, session, "SHOW work_mem"))
	execute(t, session, "CREATE TABLE t AS SELECT 42 AS i")

	for name, end := range map[string]func() error{
		"stop": server.Stop, "immediate": server.Immediate, "kill": server.Kill,
	} {
		before := connect(t, database)
		require.NoError(t, end(), name)
		_, err := before.Exec(t.Context(), "SELECT 1")
		require.Error(t, err, name)
		_, err = pgx.Connect(t.Context(), database)
		require.Error(t, err, name)
		require.NoError(t, server.Restart(t.Context()), name)
		require.Equal(t, 42, value[int](t, connect(t, database), "SELECT i FROM t"), name)
	}
	require.NoError(t, server.Restart(t.Context()), "of a running server")
	require.Equal(t, 42, value[int](t, connect(t, database), "SELECT i FROM t"))
}

func TestPostgresPause(t *testing.T) {
	server := OwnPostgres(t, PostgresOptions{Version: 15})
	session := connect(t, server.URL("postgres"))
	answered := make(chan error, 1)
	ask := func() {
		_, err := session.Exec(context.WithoutCancel(t.Context()), "SELECT 1")
		answered <- err
	}

	require.NoError(t, server.Pause())
	require.Error(t, server.Pause(), "a second time")
	go ask()
	select {
	case err := <-answered:
		t.Fatalf("a backend of a paused server answers: %v", err)
	case <-time.After(200 * time.Millisecond): // a frozen server is silent for any time
	}
	require.NoError(t, server.Continue())
	require.NoError(t, <-answered)

	// Every way to end a server also ends a paused one.
	for name, end := range map[string]func() error{"stop": server.Stop, "kill": server.Kill} {
		require.NoError(t, server.Pause(), name)
		require.NoError(t, end(), name)
		require.NoError(t, server.Restart(t.Context()), name)
	}
}

func TestPostgresPasswordAndTLS(t *testing.T) {
	files, err := Certificates(t.TempDir())
	require.NoError(t, err)
	strangers, err := Certificates(t.TempDir())
	require.NoError(t, err)
	for _, version := range []int{15, 18} {
		server := OwnPostgres(t, PostgresOptions{Version: version, Password: "p w/d", Certificates: files})
		verified := server.URL("postgres") + "?sslmode=verify-full&sslrootcert="
		require.True(t, value[bool](t, connect(t, verified+files.CA), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))

		_, err = pgx.Connect(t.Context(), verified+strangers.CA)
		require.ErrorContains(t, err, "certificate signed by unknown authority")

		wrong, err := pgx.ParseConfig(server.URL("postgres"))
		require.NoError(t, err)
		wrong.Password = "wrong"
		_, err = pgx.ConnectConfig(t.Context(), wrong)
		require.ErrorContains(t, err, "password authentication failed")
	}
}

func TestPostgresStartErrors(t *testing.T) {
	_, err := StartPostgres(t.Context(), PostgresOptions{Version: 9})
	require.ErrorContains(t, err, "there is no PostgreSQL 9 here")
	_, err = StartPostgres(t.Context(), PostgresOptions{Version: 15, Settings: map[string]string{"no_such": "1"}})
	require.ErrorContains(t, err, `unrecognized configuration parameter "no_such"`, "the log's end")
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	connection, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() { require.NoError(t, connection.Close(ctx)) })
	return connection
}

func execute(t *testing.T, connection *pgx.Conn, statement string) {
	t.Helper()
	_, err := connection.Exec(t.Context(), statement)
	require.NoError(t, err)
}

func value[T any](t *testing.T, connection *pgx.Conn, query string) T {
	t.Helper()
	rows, err := connection.Query(t.Context(), query)
	require.NoError(t, err)
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return got
}
