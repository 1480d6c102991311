package postgres_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
	"auditsink/migrations"
)

// TestIdentity: the same for whoever uses the same tables, by whatever way and name; another for every other database and schema.
func TestIdentity(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	database := func() string {
		u, err := server.CreateDatabase(t.Context())
		require.NoError(t, err)
		return u
	}
	with := func(base, name, value string) string {
		u, err := url.Parse(base)
		require.NoError(t, err)
		q := u.Query()
		q.Set(name, value)
		u.RawQuery = q.Encode()
		return u.String()
	}
	identity := func(o postgres.Options) string {
		t.Helper()
		id, err := open(t, o).Identity(t.Context())
		require.NoError(t, err)
		return id
	}
	first, second := database(), database()
	_, err := open(t, postgres.Options{URL: first}).Identity(t.Context())
	require.Equal(t, postgres.Fatal, postgres.Classify(err), "no schema: %v", err)
	for _, u := range []string{first, second} {
		_, err := migrations.Apply(t.Context(), u)
		require.NoError(t, err)
	}
	admin := open(t, postgres.Options{URL: first, Prepared: true})
	run := func(sql string) {
		t.Helper()
		_, err := admin.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	id := identity(postgres.Options{URL: first, Prepared: true})
	require.Regexp(t, `^s\d+\.\d+\.\d+$`, id)
	require.NotEqual(t, id, identity(postgres.Options{URL: second}))

	run(`CREATE SCHEMA other`)
	other := with(first, "search_path", "other")
	_, err = migrations.Apply(t.Context(), other)
	require.NoError(t, err)
	require.NotEqual(t, id, identity(postgres.Options{URL: other}), "two in one database")

	// Another user, whose current_schema() is its own, by way of a pooler.
	run(`CREATE ROLE looker LOGIN PASSWORD 'looker'; CREATE SCHEMA looker AUTHORIZATION looker; GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker`)
	u, err := url.Parse(first)
	require.NoError(t, err)
	u.User = url.UserPassword("looker", "looker")
	require.Equal(t, id, identity(postgres.Options{URL: u.String()}))

	run(`REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC`)
	denied := identity(postgres.Options{URL: u.String()})
	require.Regexp(t, `^m\d{16}\.\d+\.\d+$`, denied)
	require.Equal(t, strings.SplitN(id, ".", 2)[1], strings.SplitN(denied, ".", 2)[1])
	require.NoError(t, server.Stop())
	require.NoError(t, server.Restart(t.Context()))
	require.Equal(t, denied, identity(postgres.Options{URL: with(u.String(), "TimeZone", "Asia/Kolkata")}))
	require.Equal(t, id, identity(postgres.Options{URL: first}))
}
