package kafka

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/config"
	"auditsink/internal/testkit"
)

func TestTopics(t *testing.T) {
	literals, patterns := Topics([]string{"a", "^b", "c.d"})
	require.Equal(t, []string{"a", "c.d"}, literals)
	require.Equal(t, []string{"^b"}, patterns)
}

// Where names stand beside expressions, a name takes its own topic and no other that looks like it.
func TestConsumeTopics(t *testing.T) {
	broker := testkit.Kafka(t)
	prefix := testkit.Name(t)
	topics := map[string]bool{} // name → consumed
	for _, suffix := range []string{".events", "-events", ".events2", "_audit_1", "_audit_2", "_other"} {
		name := prefix + suffix
		topics[name] = suffix == ".events" || suffix == "_audit_1" || suffix == "_audit_2"
		broker.CreateTopic(t, name, 1, nil)
	}
	cfg := settings(broker.Brokers())
	producer := connect(t, cfg)
	for name := range topics {
		require.NoError(t, producer.ProduceSync(soon(t), &kgo.Record{Topic: name, Value: []byte(name)}).FirstErr())
	}
	for entries, want := range map[*[]string][]string{
		{prefix + ".events", "^" + prefix + "_audit_"}: {prefix + ".events", prefix + "_audit_1", prefix + "_audit_2"},
		{prefix + ".events"}:                           {prefix + ".events"},
		{"^" + prefix + ".events$"}:                    {prefix + "-events", prefix + ".events"},
	} {
		consumer := connect(t, cfg, append(ConsumeTopics(*entries), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		var got []string
		for len(got) < len(want) {
			fetches := consumer.PollFetches(soon(t))
			require.NoError(t, fetches.Err())
			fetches.EachRecord(func(r *kgo.Record) { got = append(got, r.Topic) })
		}
		// What else is consumed would be assigned by now: all topics come with the same metadata.
		assigned := consumer.GetConsumeTopics()
		slices.Sort(got)
		slices.Sort(assigned)
		require.Equal(t, want, got)
		require.Equal(t, want, assigned)
	}
}

func TestCheckTopics(t *testing.T) {
	broker := testkit.Kafka(t)
	name := testkit.Name(t)
	broker.CreateTopic(t, name, 1, nil)
	client := kadm.NewClient(connect(t, settings(broker.Brokers())))

	require.NoError(t, CheckTopics(soon(t), client, []string{name, name, "^matches-none-"}))
	require.NoError(t, CheckTopics(soon(t), client, []string{"^matches-none-"}))

	err := CheckTopics(soon(t), client, []string{name, "no-such-2", "no-such-1"})
	require.ErrorContains(t, err, `the cluster has no topic "no-such-1"`)
	require.ErrorContains(t, err, `the cluster has no topic "no-such-2"`)
	require.ErrorContains(t, err, "Create it, or correct AUDITSINK_KAFKA_TOPICS.")
	require.NotContains(t, err.Error(), name)
	require.True(t, Fatal(err))

	err = CheckTopics(soon(t), client, nil)
	var e *config.Error
	require.ErrorAs(t, err, &e)
}

// Without a broker the answer is that, also where only expressions would be checked, and it isn't final.
func TestCheckTopicsWithoutABroker(t *testing.T) {
	for _, entries := range [][]string{{"events"}, {"^events"}} {
		cfg := settings([]string{"127.0.0.1:1"})
		err := CheckTopics(soon(t), kadm.NewClient(connect(t, cfg)), entries)
		require.Error(t, err)
		require.False(t, Fatal(err))
		err = Explain(err, cfg)
		require.ErrorContains(t, err, "no broker can be reached, AUDITSINK_KAFKA_BROKERS=127.0.0.1:1")
		require.ErrorContains(t, err, "Check the addresses")
		require.False(t, Fatal(err))
	}
	cfg := settings([]string{"no-such-host.invalid"})
	err := Explain(CheckTopics(soon(t), kadm.NewClient(connect(t, cfg)), []string{"events"}), cfg)
	require.ErrorContains(t, err, "Check the names in the list, and this machine's DNS.")
	require.False(t, Fatal(err))
}
