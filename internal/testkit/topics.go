package testkit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topics are the methods that a Broker and a Cluster have in common.
type topics struct {
	nodes   []*Broker
	brokers func() []string // the bootstrap addresses
}

// client returns a client of the listener without security. The caller closes it.
func (a *topics) client() (*kgo.Client, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(a.brokers()...),
		kgo.DialTimeout(time.Second),
		// A broker that starts is asked again soon, and by poll; one that is paused, not for long.
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.MetadataMinAge(50*time.Millisecond),
		kgo.RequestTimeoutOverhead(3*time.Second),
	)
	if err != nil {
		return nil, fmt.Errorf("make a client of the broker: %w", err)
	}
	return client, nil
}

// admin runs f with an admin client.
func (a *topics) admin(f func(*kadm.Client) error) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	return f(kadm.NewClient(client))
}

// NewTopic creates a topic with a replica on every node, and waits until every broker knows each partition's leader. configs are the
// topic's own.
func (a *topics) NewTopic(ctx context.Context, name string, partitions int32, configs map[string]string) error {
	values := map[string]*string{}
	for key, value := range configs {
		values[key] = &value
	}
	err := a.admin(func(client *kadm.Client) error {
		_, err := client.CreateTopic(ctx, partitions, int16(len(a.nodes)), values, name) //nolint:gosec // one or three
		return err
	})
	if err != nil {
		return fmt.Errorf("create topic %s: %w", name, err)
	}
	err = a.everywhere(ctx, name, func(topic kmsg.MetadataResponseTopic) error {
		if err := kerr.ErrorForCode(topic.ErrorCode); err != nil {
			return err
		}
		for _, partition := range topic.Partitions {
			if partition.ErrorCode != 0 || partition.Leader < 0 {
				return fmt.Errorf("partition %d has no leader", partition.Partition)
			}
		}
		if got := len(topic.Partitions); got != int(partitions) {
			return fmt.Errorf("%d of %d partitions are known", got, partitions)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for topic %s: %w", name, err)
	}
	return nil
}

// CreateTopic is NewTopic for a test.
func (a *topics) CreateTopic(t testing.TB, name string, partitions int32, configs map[string]string) {
	t.Helper()
	require.NoError(t, a.NewTopic(t.Context(), name, partitions, configs))
}

// DeleteTopic deletes a topic and waits until no broker knows it any more, so that NewTopic can make it again.
func (a *topics) DeleteTopic(ctx context.Context, name string) error {
	err := a.admin(func(client *kadm.Client) error {
		response, err := client.DeleteTopic(ctx, name)
		return errors.Join(err, response.Err)
	})
	if err != nil {
		return fmt.Errorf("delete topic %s: %w", name, err)
	}
	err = a.everywhere(ctx, name, func(topic kmsg.MetadataResponseTopic) error {
		if topic.ErrorCode != kerr.UnknownTopicOrPartition.Code {
			return errors.New("it is still there")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for the end of topic %s: %w", name, err)
	}
	return nil
}

// DeleteRecords makes upTo the first offset of a partition, as retention would; -1 is the end of what is replicated.
func (a *topics) DeleteRecords(ctx context.Context, topic string, partition int32, upTo int64) error {
	err := a.admin(func(client *kadm.Client) error {
		var offsets kadm.Offsets
		offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: upTo})
		responses, err := client.DeleteRecords(ctx, offsets)
		return errors.Join(err, responses.Error())
	})
	if err != nil {
		return fmt.Errorf("delete the records of topic %s, partition %d, before %d: %w", topic, partition, upTo, err)
	}
	return nil
}

// everywhere polls what each broker of the cluster says of a topic, until ok is content with all. One that is down or paused is asked until
// the others have noticed.
func (a *topics) everywhere(ctx context.Context, topic string, ok func(kmsg.MetadataResponseTopic) error) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	return poll(ctx, 20*time.Millisecond, func() error {
		cluster, err := metadata(ctx, client, "")
		if err != nil {
			return err
		}
		for _, broker := range cluster.Brokers {
			response, err := metadata(ctx, client.Broker(int(broker.NodeID)), topic)
			if err == nil {
				err = ok(response.Topics[0])
			}
			if err != nil {
				return fmt.Errorf("broker %d: %w", broker.NodeID, err)
			}
		}
		return nil
	})
}

// metadata asks a broker, or with a client any of them, for what it knows of its cluster and, unless the name is empty, of a topic.
func metadata(ctx context.Context, broker kmsg.Requestor, topic string) (*kmsg.MetadataResponse, error) {
	request := kmsg.NewPtrMetadataRequest()
	request.Topics = []kmsg.MetadataRequestTopic{} // nil would be all
	if topic != "" {
		request.Topics = append(request.Topics, kmsg.MetadataRequestTopic{Topic: &topic})
	}
	response, err := request.RequestWith(ctx, broker)
	if err != nil {
		return nil, err
	}
	if len(response.Topics) != len(request.Topics) {
		return nil, fmt.Errorf("%d topics in the answer, not %d", len(response.Topics), len(request.Topics))
	}
	return response, nil
}

// partition returns what the cluster knows of a partition.
func (a *topics) partition(ctx context.Context, topic string, partition int32) (kadm.PartitionDetail, error) {
	var detail kadm.PartitionDetail
	err := a.admin(func(client *kadm.Client) error {
		listed, err := client.ListTopics(ctx, topic)
		if err != nil {
			return err
		}
		if err := listed[topic].Err; err != nil {
			return err
		}
		var ok bool
		if detail, ok = listed[topic].Partitions[partition]; !ok {
			return kerr.UnknownTopicOrPartition
		}
		return nil
	})
	if err != nil {
		return detail, fmt.Errorf("look at topic %s, partition %d: %w", topic, partition, err)
	}
	slices.Sort(detail.ISR)
	return detail, nil
}
