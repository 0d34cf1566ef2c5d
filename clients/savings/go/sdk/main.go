// Signs users out by the AWS SDK.
package main

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	cognito "github.com/aws/aws-sdk-go-v2/service/cognitoidentityprovider"

	"example.com/sessions/savings"
)

func main() {
	probe.Run(func(address string) func() error {
		ctx := context.Background()
		configured, err := config.LoadDefaultConfig(ctx, config.WithRegion("us-east-1"))
		client := cognito.NewFromConfig(configured, func(options *cognito.Options) { options.BaseEndpoint = &address })
		return func() error {
			if err == nil {
				_, err = client.AdminUserGlobalSignOut(ctx, &cognito.AdminUserGlobalSignOutInput{
					UserPoolId: aws.String("us-east-1_EXAMPLE01"),
					Username:   aws.String("ada"),
				})
			}
			return err
		}
	})
}
