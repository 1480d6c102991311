package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
)

func TestProduce(t *testing.T) {
	broker, err := testkit.StartKafka(t.Context(), testkit.KafkaOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	t.Setenv("AUDITSINK_KAFKA_BROKERS", strings.Join(broker.Brokers(), ","))
	topic := func(t *testing.T, name string) string {
		require.NoError(t, broker.NewTopic(t.Context(), name, 1, nil))
		t.Setenv("AUDITSINK_KAFKA_TOPICS", "^pattern,"+name+",other")
		return name
	}

	t.Run("samples", func(t *testing.T) {
		name := topic(t, "samples")
		code, out, errs := produce(t, nil, "--events", "300")
		require.Equal(t, 0, code, errs)
		require.Regexp(t, `^published 300 events to topic samples in [0-9.]+ s \([0-9]+/s\)\n$`, out)
		records := published(t, broker.Brokers(), name)
		require.Len(t, records, 300)
		for _, r := range records {
			require.Contains(t, string(r.Value), string(r.Key))
			require.NotEmpty(t, r.Key)
		}
	})

	t.Run("lines as they are", func(t *testing.T) {
		name := topic(t, "lines")
		lines := []string{` {"a": 1} ` + "\r", "", "caf\xe9 \x00", " \t\r", strings.Repeat("x", 200_000), "last\u2028"}
		file := filepath.Join(t.TempDir(), "events")
		require.NoError(t, os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600))
		want := []string{lines[0], lines[2], lines[4], lines[5]}

		code, out, errs := produce(t, nil, "--file", file)
		require.Equal(t, 0, code, errs)
		require.Contains(t, out, "published 4 events to topic lines in ")
		require.Contains(t, out, ", skipped 2 blank lines\n")
		var got []string
		for _, r := range published(t, broker.Brokers(), name) {
			require.Nil(t, r.Key)
			got = append(got, string(r.Value))
		}
		require.Equal(t, want, got)
	})

	t.Run("some lines of standard input", func(t *testing.T) {
		topic(t, "unused")
		name := topic(t, "stdin")
		code, out, errs := produce(t, strings.NewReader("1\n2\n3\n"), "--file", "-", "--events", "2", "--topic", name)
		require.Equal(t, 0, code, errs)
		require.Contains(t, out, "published 2 events to topic stdin")
		require.Len(t, published(t, broker.Brokers(), name), 2)
	})

	t.Run("interrupt", func(t *testing.T) {
		name := topic(t, "interrupted")
		ctx, interrupt := context.WithCancel(t.Context())
		in, typing := io.Pipe()
		var out, errs bytes.Buffer
		done := make(chan int, 1)
		go func() {
			done <- run(ctx, []string{"produce", "--file", "-", "--rate", "1000000"}, in, &out, &errs)
		}()
		for i := range 10 {
			_, err := fmt.Fprintln(typing, i)
			require.NoError(t, err)
		}
		require.Eventually(t, func() bool { return len(published(t, broker.Brokers(), name)) == 10 }, time.Minute, 20*time.Millisecond)
		interrupt() // while it waits for a line
		require.Equal(t, 0, <-done, errs.String())
		require.NoError(t, typing.Close())
		require.Contains(t, out.String(), "published 10 events")
	})

	t.Run("a line too long for the broker", func(t *testing.T) {
		name := topic(t, "long")
		code, out, errs := produce(t, strings.NewReader("1\n"+strings.Repeat("x", 5<<20)+"\n3\n"), "--file", "-")
		require.Equal(t, 1, code)
		require.Contains(t, out, "published 2 events")
		require.Contains(t, errs, "1 records were not stored")
		require.Len(t, published(t, broker.Brokers(), name), 2)
	})

	t.Run("refuses", func(t *testing.T) {
		topic(t, "there")
		for name, c := range map[string]struct {
			args []string
			want string
			code int
		}{
			"a topic that isn't there": {[]string{"--topic", "missing"}, `no topic "missing"`, 2},
			"a file that isn't there":  {[]string{"--file", "/no/such/file"}, "/no/such/file", 1},
			"a rate below 0":           {[]string{"--rate", "-1"}, "--rate -1", 2},
			"no number":                {[]string{"--events", "many"}, "--events", 2},
			"arguments":                {[]string{"x"}, "x", 2},
		} {
			t.Run(name, func(t *testing.T) {
				code, out, errs := produce(t, nil, c.args...)
				require.Equal(t, c.code, code, errs)
				require.Contains(t, errs, c.want)
				require.Empty(t, out)
			})
		}
		t.Setenv("AUDITSINK_KAFKA_TOPICS", "^pattern")
		code, _, errs := produce(t, nil)
		require.Equal(t, 2, code)
		require.Contains(t, errs, "AUDITSINK_KAFKA_TOPICS names no topic to publish to")
		t.Setenv("AUDITSINK_KAFKA_BROKERS", "127.0.0.1:1")
		t.Setenv("AUDITSINK_KAFKA_TOPICS", "there")
		code, _, errs = produce(t, nil)
		require.NotEqual(t, 0, code)
		require.Contains(t, errs, "127.0.0.1:1")
	})
}

func produce(t *testing.T, in io.Reader, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(t.Context(), append([]string{"produce"}, args...), in, &o, &e)
	return code, o.String(), e.String()
}

// published are all records of a topic with one partition.
func published(t *testing.T, brokers []string, topic string) (records []*kgo.Record) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.FetchMaxWait(100*time.Millisecond))
	require.NoError(t, err)
	defer client.Close()
	for {
		fetches := client.PollFetches(t.Context())
		require.NoError(t, fetches.Err())
		end := int64(-1)
		fetches.EachPartition(func(p kgo.FetchTopicPartition) { end = p.HighWatermark })
		records = append(records, fetches.Records()...)
		if end >= 0 && (end == 0 || len(records) > 0 && records[len(records)-1].Offset+1 >= end) {
			return records
		}
	}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		p := newPace(200)
		for range 201 {
			require.True(t, p.wait(t.Context()))
		}
		require.Equal(t, time.Second, time.Since(begin))
		// One that is late is made up for.
		<-time.After(time.Second)
		for range 200 {
			require.True(t, p.wait(t.Context()))
		}
		require.Equal(t, 2*time.Second, time.Since(begin))

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.False(t, p.wait(ctx))
		require.Equal(t, 2*time.Second, time.Since(begin), "waited after the end")
		p = newPace(0)
		for range 1000 {
			require.True(t, p.wait(t.Context()))
		}
		require.Equal(t, 2*time.Second, time.Since(begin))
		require.False(t, p.wait(ctx))
	})
}
