package performance

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func preloaded(t *testing.T, test func(b *bed)) {
	t.Helper()
	own(t, map[string]string{"shared_preload_libraries": "pg_stat_statements"}, func(b *bed) {
		b.exec(`CREATE SCHEMA elsewhere; CREATE EXTENSION pg_stat_statements SCHEMA elsewhere`)
		test(b)
	})
}

// statement is the one of the report whose text begins so.
func statement(b *bed, r Report, begins string) *Statement {
	b.Helper()
	require.NotNil(b, r.Database.Statements, r.Database.Unread)
	for _, s := range r.Database.Statements.Top {
		if strings.HasPrefix(s.Text, begins) {
			return &s
		}
	}
	return nil
}

// TestStatements: calls and times of the window, in seconds, and nothing is reset.
func TestStatements(t *testing.T) {
	preloaded(t, func(b *bed) {
		sleep := `SELECT 'slept', pg_sleep(0.06)`
		b.do(sleep, sleep)
		c := b.collector(func(o *Options) { o.Slow = 50 * time.Millisecond })
		b.do(sleep, sleep, sleep, `SELECT n, pg_sleep(0.003) FROM generate_series(1, 10) n`)
		r := b.next(c)
		s := statement(b, r, "SELECT $1, pg_sleep")
		require.NotNil(b, s, r.Database.Statements)
		require.EqualValues(b, 3, s.Calls)
		require.EqualValues(b, 3, s.Rows)
		require.GreaterOrEqual(b, s.TotalSeconds, 0.18)
		require.Less(b, s.TotalSeconds, 18.0)
		require.InDelta(b, s.TotalSeconds/3, s.MeanSeconds, 1e-9)
		require.True(b, s.Slow)
		require.EqualValues(b, 10, statement(b, r, "SELECT n, pg_sleep").Rows)
		require.False(b, statement(b, r, "SELECT n, pg_sleep").Slow)
		require.Positive(b, r.Database.Statements.Slow)
		require.Equal(b, start, r.Database.Statements.Since)
		require.LessOrEqual(b, len(r.Database.Statements.Top), topStatements)

		require.Nil(b, statement(b, b.next(c), "SELECT $1, pg_sleep"), "not in this window")
		require.EqualValues(b, 5, one[int64](b, `SELECT sum(calls)::bigint FROM elsewhere.pg_stat_statements WHERE query LIKE 'SELECT $1, pg_sleep%'`), "it was read without resetting")
		b.do(sleep)
		require.EqualValues(b, 1, statement(b, b.next(c), "SELECT $1, pg_sleep").Calls)
		b.do(`SELECT elsewhere.pg_stat_statements_reset()`, sleep)
		r = b.next(c)
		require.EqualValues(b, 1, statement(b, r, "SELECT $1, pg_sleep").Calls)
		require.WithinDuration(b, time.Now(), r.Database.Statements.Since, time.Minute)
	})
}

// TestStatementsHoldNoValues: whatever was in a statement, the report has none of its values.
func TestStatementsHoldNoValues(t *testing.T) {
	preloaded(t, func(b *bed) {
		// Each takes longer than what the report itself asks, so that it would be among the first.
		const sleep = `pg_sleep(0.03)::text`
		c := b.collector()
		b.do(`SELECT count(*), `+sleep+` FROM audit_log WHERE principal_id = 'secret1'`, `/* secret2 */ SELECT `+sleep, `SELECT `+sleep+` /* secret3 /* nested */ */ AS three, 4 -- secret4`,
			`SELECT 'secret5' AS made, `+sleep+` INTO TEMP made`, `CREATE TEMP TABLE other AS SELECT 'secret6' AS a, `+sleep, `DO $$ BEGIN PERFORM 'secret7', `+sleep+`; END $$`)
		first := b.next(c)
		require.NotNil(b, statement(b, first, "SELECT count(*), pg_sleep($1)::text FROM audit_log WHERE principal_id = $2"), first.Database.Statements)
		b.do(`COPY (SELECT 'secret8', `+sleep+`) TO STDOUT`, `EXPLAIN ANALYZE SELECT 'secret9', `+sleep, `SELECT $tag$secret10$tag$, E'it\'s secret11', U&'secret12', 12345678, `+sleep,
			`WITH secret AS (SELECT 'secret13' AS v, `+sleep+`) SELECT v FROM secret`, `PREPARE p AS SELECT 'secret14', `+sleep, `EXECUTE p`, `DECLARE c CURSOR WITH HOLD FOR SELECT 'secret15', `+sleep)
		second := b.next(c)
		require.NotNil(b, statement(b, second, "WITH secret AS (SELECT $1 AS v, pg_sleep($2)::text) SELECT v FROM secret"), second.Database.Statements)
		text, err := json.Marshal([]Report{first, second})
		require.NoError(b, err)
		require.NotRegexp(b, `secret[0-9]`, string(text))
		require.NotContains(b, string(text), "12345678")
	})
}

func TestScrub(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT  a,\n\tb1 FROM t2 WHERE c = $1 AND d = $23": "SELECT a, b1 FROM t2 WHERE c = $1 AND d = $23",
		"SELECT 'it''s', e'a\\'b', x":                       "SELECT '…''…', e'…', x",
		"SELECT 1, 2.5e10, 0x1F, a1, _2":                    "SELECT ?, ?, ?, a1, _2",
		`SELECT "Odd 'name' 1" FROM t -- don't`:             `SELECT "Odd 'name' 1" FROM t`,
		"SELECT $$one$$, $a$two $$ $a$, a$b":                "SELECT '…', '…', a$b",
		"a /* b /* c */ d */ e":                             "a e",
		"a /* never ends":                                   "a",
		"a 'never ends":                                     "a '…'",
		"IN ($1 /*, ... */)":                                "IN ($1 )",
		"interval'1 day'":                                   "interval'…'",
	} {
		require.Equal(t, want, scrub(sql), sql)
	}
	require.Len(t, []rune(scrub(strings.Repeat("ä", 1000))), textLength/2+1)
	rapid.Check(t, func(t *rapid.T) {
		scrub(strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"'", "\"", "$", "$1", "/*", "*/", "--", "\n", "a", "1", "E", "\\", "ä", " "})).Draw(t, "parts"), ""))
	})
}
