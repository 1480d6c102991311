package testkit

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func TestSmallTablespace(t *testing.T) {
	for _, version := range []int{15, 18} {
		server := PostgresServerFor(t, version)
		small, err := server.SmallTablespace(t.Context(), 32<<20)
		require.NoError(t, err)
		database, err := small.CreateDatabase(t.Context())
		require.NoError(t, err)
		session := connect(t, database)
		require.Equal(t, small.Name(), value[string](t, session,
			"SELECT spcname::text FROM pg_tablespace s JOIN pg_database d ON s.oid = dattablespace WHERE datname = current_database()"))
		execute(t, session, "CREATE TABLE t (text text)")
		const megabyte = "INSERT INTO t SELECT repeat(md5(i::text), 30) FROM generate_series(1, 1000) i"
		execute(t, session, megabyte)

		require.NoError(t, small.Fill())
		require.NoError(t, small.Fill(), "again")
		_, err = session.Exec(t.Context(), megabyte)
		var failed *pgconn.PgError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "53100", failed.Code, "disk_full")
		require.EqualValues(t, 1000, value[int64](t, session, "SELECT count(*) FROM t"))
		execute(t, connect(t, Postgres(t, version)), "CREATE TABLE t AS SELECT 1") // elsewhere all is well

		require.NoError(t, small.Free())
		require.NoError(t, small.Free(), "again")
		execute(t, session, megabyte)

		require.Error(t, small.Close(t.Context()), "a database is on it")
		require.NoError(t, server.DropDatabase(t.Context(), database))
		require.NoError(t, small.Close(t.Context()))
		require.NoDirExists(t, small.disk)
	}
}

// TestDisksGoWithTheirServer: also those that a dead test process has left.
func TestDisksGoWithTheirServer(t *testing.T) {
	mounts := func() string {
		text, err := os.ReadFile("/proc/self/mounts")
		require.NoError(t, err)
		return string(text)
	}
	server, err := StartPostgres(t.Context(), PostgresOptions{Version: 15})
	require.NoError(t, err)
	small, err := server.SmallTablespace(t.Context(), 16<<20)
	require.NoError(t, err)
	require.Contains(t, mounts(), small.disk)
	require.NoError(t, server.Close())
	require.NotContains(t, mounts(), small.disk)
	require.NoDirExists(t, server.place.dir)

	servers := t.TempDir()
	dead := filepath.Join(servers, "dead") // nobody holds its lock
	disk, err := newDisk(dead, 16<<20, nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(disk, "file"), nil, 0o600))
	require.NoError(t, os.WriteFile(dead+".lock", nil, 0o600))
	require.Contains(t, mounts(), disk)
	require.NoError(t, sweep(servers))
	require.NotContains(t, mounts(), disk)
	require.NoDirExists(t, dead)
}
